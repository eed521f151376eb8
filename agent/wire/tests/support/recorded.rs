//! Formats against their golden files, and the same texts as a newer build would write them.
//!
//! `make golden` records anew; then raise the format's version if an old reader would misread it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::path::Path;

/// One text: written as recorded, read back, and refused in another version.
pub(crate) fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    same(name, value);
    refused_when_newer(name, value);
}

/// Written as recorded, and read back.
pub(crate) fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.json"));
    let mut text = serde_json::to_string_pretty(value).unwrap();
    text.push('\n');
    if std::env::var("INSTA_UPDATE").as_deref() == Ok("always") {
        std::fs::write(&path, &text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{name}: the format changed; see the text above");
    assert_eq!(&serde_json::from_str::<T>(&want).unwrap(), value, "{name}: does not read back");
}

/// A newer build has raised the version and added a key: the reader must speak of the version.
pub(crate) fn refused_when_newer<T: Serialize + DeserializeOwned + Debug>(name: &str, value: &T) {
    let text = serde_json::to_string(value).unwrap();
    let body =
        text.strip_prefix("{\"version\":").unwrap_or_else(|| panic!("{name}: no version first: {text}"));
    let (version, rest) = body.split_at(body.find([',', '}']).unwrap());
    let newer = version.parse::<u32>().unwrap() + 1;
    let newer_text = format!("{{\"version\":{newer},\"added\":1{rest}");
    let error = serde_json::from_str::<T>(&newer_text).unwrap_err().to_string();
    assert!(error.starts_with(&format!("version {newer}, this build reads {version}")), "{name}: {error}");
}
