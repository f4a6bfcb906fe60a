//! Names of a checkpoint's objects in the bucket, below the store's own prefix.
//!
//! Owns the layout `apps/NAME/manifest.json` and `apps/NAME/GEN/OBJECT`; knows nothing of contents.

/// Key of the manifest of `app`: the one object that is ever replaced, and only by a conditional PUT.
pub fn manifest(app: &str) -> String {
    format!("apps/{app}/manifest.json")
}

/// What all keys of `app` begin with.
pub fn app_prefix(app: &str) -> String {
    format!("apps/{app}/")
}

/// What all objects of one generation of `app` begin with.
pub fn generation_prefix(app: &str, generation: u64) -> String {
    format!("apps/{app}/{generation}/")
}

/// Key of CRIU's files and other metadata of one generation.
pub fn bundle(app: &str, generation: u64) -> String {
    format!("apps/{app}/{generation}/bundle")
}

/// Key of the page index of one generation.
pub fn index(app: &str, generation: u64) -> String {
    format!("apps/{app}/{generation}/index")
}

/// Key of the archive of the writable layer of one generation.
pub fn files(app: &str, generation: u64) -> String {
    format!("apps/{app}/{generation}/files")
}

/// Key of page object number `number` of one generation.
pub fn pages(app: &str, generation: u64, number: u32) -> String {
    format!("apps/{app}/{generation}/pages-{number}")
}

/// Key of the block sums of all page objects that one generation names.
pub fn sums(app: &str, generation: u64) -> String {
    format!("apps/{app}/{generation}/sums")
}

/// The generation an object of `app` belongs to; `None` for its manifest and for foreign keys. This is
/// how left-over objects of generations that never became current are told from those in use.
pub fn generation_of(app: &str, key: &str) -> Option<u64> {
    let (generation, object) = key
        .strip_prefix("apps/")?
        .strip_prefix(app)?
        .strip_prefix('/')?
        .split_once('/')?;
    let number: u64 = generation.parse().ok()?;
    (!object.is_empty() && number.to_string() == generation).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_of_a_generation_is_recognised() {
        for key in [
            bundle("web", 7),
            index("web", 7),
            files("web", 7),
            pages("web", 7, 0),
            sums("web", 7),
        ] {
            assert!(key.starts_with(&generation_prefix("web", 7)), "{key}");
            assert_eq!(generation_of("web", &key), Some(7), "{key}");
        }
    }

    #[test]
    fn foreign_keys_belong_to_no_generation() {
        for key in [
            manifest("web"),
            bundle("web2", 7),
            "apps/web/07/bundle".into(),
            "apps/web/+7/bundle".into(),
            "apps/web/7/".into(),
        ] {
            assert_eq!(generation_of("web", &key), None, "{key}");
        }
    }
}
