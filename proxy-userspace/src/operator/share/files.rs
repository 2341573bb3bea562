//! What is printed, pinned to a wall or handed on by programs: the code in several formats, the cards, and JSON.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::Serialize;

use super::{Link, ShareError, card::card, pdf::pdf};
use crate::{
    operator::languages::languages,
    sys::{Readers, replace_file},
};

/// What the code can be had as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For pages and all sizes
    Svg,
    /// For messengers
    Png,
    /// For paper: with link, host and ports as text
    Pdf,
}

/// A link as programs want it.
#[derive(Serialize)]
struct Json<'a> {
    url: &'a str,
    host: &'a str,
    chat_port: u16,
    media_port: u16,
    chat_tls: bool,
    warnings: Vec<String>,
    files: &'a [PathBuf],
}

impl Format {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Svg, Self::Png, Self::Pdf];

    /// How a file's name ends.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Png => "png",
            Self::Pdf => "pdf",
        }
    }

    /// As HTTP names it.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Svg => "image/svg+xml",
            Self::Png => "image/png",
            Self::Pdf => "application/pdf",
        }
    }

    /// The code of a link.
    ///
    /// # Errors
    /// It cannot be painted.
    pub(crate) fn encode(self, link: &Link) -> Result<Vec<u8>, ShareError> {
        let english = &languages()?.english;
        Ok(match self {
            Self::Svg => link.svg(&english.card.code).into_bytes(),
            Self::Png => link.code().png()?,
            Self::Pdf => pdf(link, english),
        })
    }
}

/// Writes the code in these formats, and a card in each language, into a folder; returns the files. It may be a folder of
/// somebody else's, who must not lead root anywhere: no link in it is followed.
///
/// # Errors
/// The file that could not be written. What was there before is there still.
pub fn write(link: &Link, formats: &[Format], directory: &Path) -> Result<Vec<PathBuf>, ShareError> {
    let mut files = Vec::new();
    for format in Format::ALL.iter().filter(|format| formats.contains(format)) {
        files.push((format!("proxy.{}", format.extension()), format.encode(link)?));
    }
    for language in languages()?.iter() {
        files.push((format!("card-{}.html", language.code), card(language, link)?.into_bytes()));
    }
    let failed = |path: &Path, error| ShareError::Write { path: path.into(), error };
    let open = || {
        fs::create_dir_all(directory)?;
        File::open(directory)
    };
    let folder = open().map_err(|error| failed(directory, error))?;
    let mut written = Vec::new();
    for (name, bytes) in files {
        let path = directory.join(&name);
        replace_file(&folder, &name, &bytes, Readers::All, None).map_err(|error| failed(&path, error))?;
        written.push(path);
    }
    Ok(written)
}

/// A link, and the files that were written, as one object.
///
/// # Errors
/// A path that is no text.
pub fn json(link: &Link, files: &[PathBuf]) -> serde_json::Result<String> {
    let (url, host, warnings) = (link.url(), link.host.as_str(), link.warnings());
    let Link { chat: chat_port, media: media_port, tls: chat_tls, .. } = *link;
    serde_json::to_string_pretty(&Json { url, host, chat_port, media_port, chat_tls, warnings, files })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;
    use crate::{
        config::Config,
        operator::share::{self, Ports},
    };

    fn example() -> Link {
        share::link(&Config::load(None).unwrap(), "example.org", &Ports::default()).unwrap()
    }

    #[test]
    fn everything_is_written_and_what_cannot_be_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("new/out");
        let written = write(&example(), &Format::ALL, &out).unwrap();
        for format in Format::ALL {
            assert!(written.contains(&out.join(format!("proxy.{}", format.extension()))), "{written:?}");
        }
        assert_eq!(written.len(), Format::ALL.len() + languages().unwrap().iter().count());
        assert!(written.iter().all(|path| fs::metadata(path).unwrap().len() > 500), "{written:?}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), written.len(), "nothing else is left there");
        // Twice is as once.
        assert_eq!(write(&example(), &Format::ALL, &out).unwrap(), written);
        let error = write(&example(), &[Format::Svg], &out.join("proxy.svg")).unwrap_err().to_string();
        assert!(error.contains("proxy.svg cannot be written"), "{error}");
    }

    #[test]
    fn links_in_the_folder_lead_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, out) = (directory.path().join("victim"), directory.path().join("out"));
        fs::write(&victim, "precious").unwrap();
        fs::create_dir(&out).unwrap();
        symlink(&victim, out.join("proxy.svg")).unwrap();
        fs::hard_link(&victim, out.join("card-en.html")).unwrap();
        write(&example(), &[Format::Svg], &out).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        for name in ["proxy.svg", "card-en.html"] {
            let metadata = fs::symlink_metadata(out.join(name)).unwrap();
            assert!(metadata.is_file() && metadata.nlink() == 1, "{name}");
        }
    }

    #[test]
    fn programs_get_each_part_by_its_name() {
        let text = json(&example(), &["cards/proxy.svg".into()]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["url"], example().url());
        assert_eq!((&value["host"], &value["chat_tls"]), (&"example.org".into(), &true.into()));
        assert_eq!((&value["chat_port"], &value["media_port"]), (&443.into(), &587.into()));
        assert_eq!(value["files"][0], "cards/proxy.svg");
        assert!(value["warnings"][0].as_str().unwrap().contains("examples"), "{text}");
    }
}
