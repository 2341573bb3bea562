//! What the tests of parsers share.

/// The committed corpus of a fuzz target, by name of file.
pub(crate) fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 10, "the corpus is missing");
    files
}

/// What a parser says of all the bytes; every prefix must say the same, unless that it is incomplete.
pub(crate) fn monotone<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    parse: fn(&[u8]) -> T,
    is_incomplete: impl Fn(&T) -> bool,
) -> T {
    let outcome = parse(bytes);
    let undecided = (0..=bytes.len()).take_while(|len| is_incomplete(&parse(&bytes[..*len]))).count();
    for len in undecided..bytes.len() {
        assert_eq!(parse(&bytes[..len]), outcome, "of {len} bytes");
    }
    outcome
}
