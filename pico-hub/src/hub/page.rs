//! Page tokens: where the next page begins, opaque to callers.

use tonic::Code;

use crate::problem::Problem;

const DEFAULT: usize = 100;
const MOST: u32 = 1000;

/// How many to give when `asked` are asked for.
pub(super) fn size(asked: u32) -> Result<usize, Problem> {
    match asked {
        0 => Ok(DEFAULT),
        asked if asked <= MOST => Ok(usize::try_from(asked).unwrap_or(DEFAULT)),
        asked => Err(Problem::field(
            "page_size",
            format!("{asked} is more than {MOST}"),
        )),
    }
}

/// The token of a page that begins after `parts`.
pub(super) fn write(parts: &[&str]) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(parts.join("\0"))
}

/// What [`write()`] was given; `None` for the first page.
pub(super) fn read<const N: usize>(token: &str) -> Result<Option<[String; N]>, Problem> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong = || {
        Problem::new(
            Code::InvalidArgument,
            "PAGE_TOKEN",
            "this page token is none of this hub's",
        )
    };
    let bytes = base64_simd::URL_SAFE_NO_PAD
        .decode_to_vec(token)
        .map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    let parts: Vec<String> = text.split('\0').map(str::to_owned).collect();
    parts.try_into().map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_reads_back_and_nonsense_is_refused() {
        let token = write(&["ann", "web"]);
        assert_eq!(
            read::<2>(&token).unwrap(),
            Some(["ann".to_owned(), "web".to_owned()])
        );
        assert_eq!(read::<2>("").unwrap(), None);
        for wrong in ["!", "AAAA", &write(&["one"]), &write(&["a", "b", "c"])] {
            assert!(read::<2>(wrong).is_err(), "{wrong}");
        }
        assert!(size(1001).is_err());
        assert_eq!((size(0).unwrap(), size(7).unwrap()), (100, 7));
    }
}
