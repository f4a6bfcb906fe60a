//! Owns the order and paging of listings, over any sorted map. Pure; must not know disks or requests.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::names;

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Behind this key, which need not exist.
    Key(String),
    /// Behind every key that starts so: a group that was already reported.
    Group(String),
}

impl After {
    /// The continuation token a client gets for it: opaque to the client, safe in XML and URLs.
    pub fn to_token(&self) -> String {
        match self {
            After::Key(key) => format!("k{}", names::hex(key.as_bytes())),
            After::Group(prefix) => format!("g{}", names::hex(prefix.as_bytes())),
        }
    }

    /// Reads a token back; `None` if we never made it.
    pub fn from_token(token: &str) -> Option<After> {
        let text = |hex| String::from_utf8(names::unhex(hex)?).ok();
        match (token.get(..1)?, token.get(1..)?) {
            ("k", hex) => text(hex).map(After::Key),
            ("g", hex) => text(hex).map(After::Group),
            _ => None,
        }
    }
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only keys that start so.
    pub prefix: String,
    /// Keys that share what follows the prefix up to here are reported as one group.
    pub delimiter: Option<String>,
    /// Where to go on.
    pub after: Option<After>,
    /// At most so many keys and groups together.
    pub limit: usize,
}

/// One page of a listing. Keys and groups are each in byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<V> {
    /// The objects.
    pub entries: Vec<V>,
    /// The groups: prefix up to and including the delimiter.
    pub groups: Vec<String>,
    /// Where the next page starts, if there is more.
    pub next: Option<After>,
}

/// One page of `map`. Skips over grouped keys, so the cost grows with the page, not with the map.
pub fn page<V: Clone>(map: &BTreeMap<String, V>, query: &Query) -> Page<V> {
    let mut page = Page {
        entries: Vec::new(),
        groups: Vec::new(),
        next: None,
    };
    if query.limit == 0 {
        return page;
    }
    let mut last = None;
    let mut from = match &query.after {
        None => Bound::Included(query.prefix.clone()),
        Some(After::Key(key)) if *key < query.prefix => Bound::Included(query.prefix.clone()),
        Some(After::Key(key)) => Bound::Excluded(key.clone()),
        Some(After::Group(group)) => match behind(group) {
            Some(key) if key < query.prefix => Bound::Included(query.prefix.clone()),
            Some(key) => Bound::Included(key),
            None => return page,
        },
    };
    while let Some((key, value)) = map.range((from, Bound::Unbounded)).next() {
        let Some(rest) = key.strip_prefix(query.prefix.as_str()) else {
            break;
        };
        if page.entries.len() + page.groups.len() == query.limit {
            page.next = last;
            break;
        }
        let delimiter = query
            .delimiter
            .as_deref()
            .filter(|delimiter| !delimiter.is_empty());
        let group_end = delimiter.and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len()));
        match group_end {
            None => {
                page.entries.push(value.clone());
                last = Some(After::Key(key.clone()));
                from = Bound::Excluded(key.clone());
            }
            Some(end) => {
                let group = &key[..query.prefix.len() + end];
                page.groups.push(group.to_owned());
                last = Some(After::Group(group.to_owned()));
                match behind(group) {
                    Some(key) => from = Bound::Included(key),
                    None => break,
                }
            }
        }
    }
    page
}

/// The smallest string greater than every string that starts with `prefix`; `None` if there is none.
fn behind(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // The order of UTF-8 bytes is the order of code points; ranges of `char` skip the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a listing must be, said the slow way.
    fn model(map: &BTreeMap<String, String>, query: &Query) -> Vec<(bool, String)> {
        let mut items: Vec<(bool, String)> = Vec::new();
        for key in map.keys().filter(|key| key.starts_with(&query.prefix)) {
            match &query.after {
                Some(After::Key(after)) if key <= after => continue,
                _ => {}
            }
            let rest = &key[query.prefix.len()..];
            let item = match query
                .delimiter
                .as_deref()
                .and_then(|d| Some(rest.find(d)? + d.len()))
            {
                Some(end) => (true, key[..query.prefix.len() + end].to_owned()),
                None => (false, key.clone()),
            };
            if items.last() != Some(&item) {
                items.push(item);
            }
        }
        items
    }

    fn key() -> impl Strategy<Value = String> {
        "[ab/\u{10ffff}\u{d7ff}]{0,5}"
    }

    proptest! {
        #[test]
        fn pages_of_any_size_add_up_to_the_whole_listing(
            keys in proptest::collection::btree_set(key(), 0..40),
            prefix in "[ab/]{0,2}",
            delimiter in proptest::option::of("[/b]|a/"),
            start in proptest::option::of(key()),
            limit in 1usize..6,
        ) {
            let map: BTreeMap<_, _> = keys.into_iter().map(|key| (key.clone(), key)).collect();
            let mut query = Query { prefix, delimiter, after: start.map(After::Key), limit };
            let expected = model(&map, &query);
            let mut seen = Vec::new();
            loop {
                let page = page(&map, &query);
                prop_assert!(page.entries.len() + page.groups.len() <= limit);
                let mut items: Vec<_> = page.entries.into_iter().map(|key| (false, key)).collect();
                items.extend(page.groups.into_iter().map(|group| (true, group)));
                items.sort_by(|a, b| a.1.cmp(&b.1));
                seen.extend(items);
                match page.next {
                    Some(after) => query.after = After::from_token(&after.to_token()),
                    None => break,
                }
                prop_assert!(query.after.is_some());
            }
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn any_token_is_read_without_harm(token in ".{0,20}") {
            if let Some(after) = After::from_token(&token) {
                prop_assert_eq!(after.to_token(), token);
            }
        }
    }

    #[test]
    fn a_full_last_page_says_there_is_no_more() {
        let map: BTreeMap<_, _> = [("a".to_owned(), 1), ("b".to_owned(), 2)].into();
        let query = Query {
            limit: 2,
            ..Query::default()
        };
        assert_eq!(page(&map, &query).next, None);
        assert_eq!(page(&map, &Query { limit: 0, ..query }).entries.len(), 0);
    }
}
