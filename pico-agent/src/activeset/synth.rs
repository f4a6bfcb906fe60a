//! A made-up app with several ports: each needs pages of its own, pages that it shares with all others, and 10 % pages
//! that no request touched before. Which is which is known, so what a model says can be judged. Deterministic by its
//! seed.

use std::collections::BTreeSet;

use super::{Kind, PageId, Source, Window};
use crate::port::{Port, Proto};

/// Pages of the app: 64 MiB.
pub(crate) const PAGES: u64 = 16_384;
/// Pages that only one port needs.
const OWN: usize = 100;
/// Pages that all ports need.
const SHARED: usize = 60;
/// Pages that the accept loop and timers touch after a wake.
const NO_PORT: usize = 20;
/// Pages of a request's own data: 10 % of what it touches.
const FRESH: usize = 18;

/// `NUMBER/tcp`.
pub(crate) fn port(number: u16) -> Port {
    Port {
        number,
        proto: Proto::Tcp,
    }
}

/// Numbers that look random (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or_default()
    }
}

/// The app.
pub(crate) struct App {
    random: Random,
    /// Pages that nothing has touched, in random order.
    unused: Vec<PageId>,
    no_port: Vec<PageId>,
    shared: Vec<PageId>,
    own: Vec<Vec<PageId>>,
}

impl App {
    /// One with ports 1 to `ports`.
    pub(crate) fn new(seed: u64, ports: usize) -> Self {
        let mut random = Random::new(seed);
        let mut unused: Vec<PageId> = (0..PAGES)
            .map(|page| PageId {
                space: 1 + u32::from(page % 3 == 0),
                page: 0x7f00 + page,
            })
            .collect();
        for at in (1..unused.len()).rev() {
            unused.swap(at, random.below(at + 1));
        }
        let mut take = |count: usize| unused.split_off(unused.len() - count);
        let (no_port, shared) = (take(NO_PORT), take(SHARED));
        let own = (0..ports).map(|_| take(OWN)).collect();
        App {
            random,
            unused,
            no_port,
            shared,
            own,
        }
    }

    /// What requests of a port touch each time, in that order.
    pub(crate) fn order(&self, by: u16) -> Vec<PageId> {
        [&self.shared[..], &self.own[usize::from(by) - 1]].concat()
    }

    /// What can be known of a wake by a port.
    pub(crate) fn known(&self, by: u16) -> BTreeSet<PageId> {
        self.no_port.iter().copied().chain(self.order(by)).collect()
    }

    /// What all ports need.
    pub(crate) fn shared(&self) -> BTreeSet<PageId> {
        self.no_port.iter().chain(&self.shared).copied().collect()
    }

    /// From now on requests of the port need other pages of its own.
    pub(crate) fn change(&mut self, by: u16) {
        self.own[usize::from(by) - 1] = self.fresh(OWN);
    }

    fn fresh(&mut self, count: usize) -> Vec<PageId> {
        self.unused.split_off(self.unused.len() - count)
    }

    /// What one request touches, with its own data at the end.
    fn request(&mut self, by: u16) -> Vec<PageId> {
        let mut pages = self.order(by);
        pages.extend(self.fresh(FRESH));
        pages
    }

    /// A wake by the first of `ports`, which the others ask after it. `ahead`: what was prefetched, and whether
    /// accessed bits were read at the end.
    pub(crate) fn wake(&mut self, ports: &[u16], ahead: Option<(&BTreeSet<PageId>, bool)>) -> Window {
        let mut window = Window::new(Kind::Wake, ports.first().map(|by| port(*by)));
        window.checkpoint_pages = PAGES;
        let mut present = BTreeSet::new();
        if let Some((pages, _)) = ahead {
            pages.iter().for_each(|page| window.prefetched(*page));
            present.clone_from(pages);
        }
        let mut accessed = BTreeSet::new();
        let mut touch = |window: &mut Window, page: PageId, by: Option<Port>| {
            if present.insert(page) {
                window.observe(page, page.page.is_multiple_of(4), by, Source::Fault);
            } else {
                accessed.insert(page);
            }
        };
        self.no_port
            .iter()
            .for_each(|page| touch(&mut window, *page, None));
        for by in ports {
            window.begin(port(*by));
            self.request(*by)
                .into_iter()
                .for_each(|page| touch(&mut window, page, Some(port(*by))));
            window.end(port(*by));
        }
        if let Some((pages, true)) = ahead {
            window.accessed_bits_read();
            for page in accessed.intersection(pages) {
                window.observe(*page, false, None, Source::Accessed);
            }
        }
        window
    }

    /// A wake in which requests of two ports are served at the same time, page by page.
    pub(crate) fn concurrent(&mut self, first: u16, second: u16) -> Window {
        let mut window = Window::new(Kind::Wake, Some(port(first)));
        self.no_port
            .iter()
            .for_each(|page| window.observe(*page, false, None, Source::Fault));
        window.begin(port(first));
        window.begin(port(second));
        let mut present = BTreeSet::new();
        let mut left = [(first, self.request(first)), (second, self.request(second))];
        left.iter_mut().for_each(|(_, pages)| pages.reverse());
        loop {
            let turn = self.random.below(2);
            let turn = if left[turn].1.is_empty() { 1 - turn } else { turn };
            let (by, pages) = &mut left[turn];
            let Some(page) = pages.pop() else { break };
            if present.insert(page) {
                window.observe(page, false, Some(port(*by)), Source::Fault);
            }
        }
        window.end(port(first));
        window.end(port(second));
        window
    }

    /// A slice of a hot period with one request, seen by accessed bits.
    pub(crate) fn hot(&mut self, by: u16) -> Window {
        let mut window = Window::new(Kind::Hot, None);
        window.begin(port(by));
        let pages: BTreeSet<PageId> = self.known(by).into_iter().chain(self.request(by)).collect();
        for page in pages {
            window.observe(page, false, None, Source::Accessed);
        }
        window.end(port(by));
        window.accessed_bits_read();
        window
    }

    /// A wake by a request that touches a quarter of the app.
    pub(crate) fn huge(&mut self, by: u16) -> Window {
        let mut window = self.wake(&[by], None);
        window.begin(port(by));
        // From the end that later requests do not take their own data from.
        for page in &self.unused[..self.unused.len() / 4] {
            window.observe(*page, false, Some(port(by)), Source::Fault);
        }
        window.end(port(by));
        window
    }
}
