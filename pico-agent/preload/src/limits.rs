//! Reads the text of `/proc/PID/limits`. Pure, and without allocation.

/// The first column of each resource's line, by number (getrlimit(2); the same on both architectures).
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Soft and hard limit of `resource`.
pub fn find(text: &str, resource: usize) -> Option<(u64, u64)> {
    let name = NAMES.get(resource)?;
    let mut values = text
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_ascii_whitespace();
    Some((number(values.next()?)?, number(values.next()?)?))
}

fn number(text: &str) -> Option<u64> {
    // RLIM64_INFINITY.
    if text == "unlimited" {
        Some(u64::MAX)
    } else {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max stack size            8388608              unlimited            bytes     
Max open files            1024                 524288               files     
Max nice priority         0                    0                    
";

    #[test]
    fn limits_are_read_and_nothing_is_made_up() {
        assert_eq!(find(TEXT, 0), Some((u64::MAX, u64::MAX)));
        assert_eq!(find(TEXT, 3), Some((8 << 20, u64::MAX)));
        assert_eq!(find(TEXT, 7), Some((1024, 524_288)));
        assert_eq!(find(TEXT, 13), Some((0, 0)));
        assert_eq!(find(TEXT, 1), None);
        assert_eq!(find(TEXT, 16), None);
        assert_eq!(find("Max cpu time", 0), None);
        assert_eq!(find("Max cpu time  x 1", 0), None);
        assert_eq!(find("Max cpu time  1 -1", 0), None);
    }
}
