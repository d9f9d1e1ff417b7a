//! What servers may take a path for.

use std::cell::OnceCell;

use super::{NormalPath, bytes, decoded_bytes, merged, resolved, unreserved};

/// Longest path that is compared in all its readings, bytes: IIS takes none that is longer, and
/// [`READINGS_MAX`] of them are made quickly. Plain paths have one reading and may be longer.
pub const COMPARED_MAX: usize = 4096;
/// Most readings of a path: as it came, and with parameters dropped or not (2), five ways of decoding
/// (5), backslashes converted or not (2), parameters dropped then or not (2), and five ways of
/// treating slashes and dot segments (5).
pub const READINGS_MAX: usize = 1 + 2 * 5 * 2 * 2 * 5;

/// Which readings of a path the server of a port may have. Without a policy it may have all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathNormalization {
    /// `%2F` may be a slash.
    pub decode_slashes: bool,
    /// Escapes may be decoded twice, or before the path is parsed: `%256c` may be an `l`, and `%3F` the
    /// beginning of a query.
    pub decode_twice: bool,
    /// A backslash, escaped or not, may be a slash.
    pub convert_backslashes: bool,
    /// `;` and what follows in a segment may be dropped.
    pub drop_parameters: bool,
    /// A slash at the end may make no difference.
    pub drop_trailing_slash: bool,
}

impl Default for PathNormalization {
    fn default() -> Self {
        Self {
            decode_slashes: true,
            decode_twice: true,
            convert_backslashes: true,
            drop_parameters: true,
            drop_trailing_slash: true,
        }
    }
}

impl PathNormalization {
    /// The readings that both allow.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            decode_slashes: self.decode_slashes && other.decode_slashes,
            decode_twice: self.decode_twice && other.decode_twice,
            convert_backslashes: self.convert_backslashes && other.convert_backslashes,
            drop_parameters: self.drop_parameters && other.drop_parameters,
            drop_trailing_slash: self.drop_trailing_slash && other.drop_trailing_slash,
        }
    }
}

/// Why a path has no reading that could be relied on: servers guess what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathAmbiguity {
    /// Some drop the `%`, some the digits, some keep both.
    #[error("the path has a % that two hexadecimal digits do not follow; write % as %25")]
    BrokenEscape,
    /// Some end the path there, some drop the character.
    #[error("the path has a control character, as it is or as an escape (%00 to %1F, %7F)")]
    ControlCharacter,
    /// Lenient decoders make other characters of it: of the overlong `%c0%af` a slash.
    #[error("the path's escapes are not UTF-8, or overlong; write characters as UTF-8 is escaped")]
    NotUtf8,
    /// Comparing it would cost too much.
    #[error(
        "the path has escapes, parameters, backslashes, // or dot segments and is longer than \
         {COMPARED_MAX} bytes"
    )]
    TooLong,
}

/// All readings of a path that its server may have. They are made when a plain comparison has not
/// decided, and kept for the next.
#[derive(Debug)]
pub struct Readings<'a> {
    path: &'a NormalPath<'a>,
    server: PathNormalization,
    /// All but the path as it came.
    others: OnceCell<Result<Vec<String>, PathAmbiguity>>,
}

impl<'a> Readings<'a> {
    /// The readings of a path by such a server.
    pub const fn of(path: &'a NormalPath<'a>, server: PathNormalization) -> Self {
        Self {
            path,
            server,
            others: OnceCell::new(),
        }
    }

    /// Whether a restriction applies: any reading matches.
    ///
    /// # Errors
    ///
    /// When the path has no reading that could be relied on; such a request is to be refused.
    pub fn any(&self, mut matches: impl FnMut(&str) -> bool) -> Result<bool, PathAmbiguity> {
        if self.path.is_plain() {
            return Ok(matches(self.path.raw()));
        }
        let others = self.others()?;
        Ok(matches(self.path.raw()) || others.iter().any(|path| matches(path)))
    }

    /// Whether a permission applies: all readings match. Never for a path that has no reading that
    /// could be relied on.
    pub fn all(&self, mut matches: impl FnMut(&str) -> bool) -> bool {
        if !matches(self.path.raw()) {
            return false;
        }
        self.path.is_plain()
            || self
                .others()
                .is_ok_and(|others| others.iter().all(|path| matches(path)))
    }

    /// Whether a slash at the end may make no difference to the server.
    pub const fn drops_trailing_slash(&self) -> bool {
        self.server.drop_trailing_slash
    }

    fn others(&self) -> Result<&[String], PathAmbiguity> {
        let others = self.others.get_or_init(|| {
            check(self.path.raw())?;
            Ok(others(self.path.raw(), self.server))
        });
        others.as_deref().map_err(|ambiguity| *ambiguity)
    }
}

fn check(path: &str) -> Result<(), PathAmbiguity> {
    if path.len() > COMPARED_MAX {
        return Err(PathAmbiguity::TooLong);
    }
    if bytes(path).any(|(byte, escaped)| byte == b'%' && !escaped) {
        return Err(PathAmbiguity::BrokenEscape);
    }
    if decoded_bytes(path).any(|byte| byte.is_ascii_control()) {
        return Err(PathAmbiguity::ControlCharacter);
    }
    let text = String::from_utf8(decoded_bytes(path).collect());
    text.map(|_valid| ()).map_err(|_| PathAmbiguity::NotUtf8)
}

fn others(raw: &str, server: PathNormalization) -> Vec<String> {
    let mut written = vec![raw.to_owned()];
    if server.drop_parameters {
        grow(&mut written, without_parameters);
    }
    let mut all = Vec::new();
    for path in &written {
        add(&mut all, unreserved(path));
        add(&mut all, decoded(path, false));
        let once = decoded(path, server.decode_slashes);
        if server.decode_twice {
            add(&mut all, decoded(&once, server.decode_slashes));
            let before_query = once.split(['?', '#']).next().unwrap_or_default();
            add(&mut all, before_query.to_owned());
        }
        add(&mut all, once);
    }
    if server.convert_backslashes {
        grow(&mut all, |path| path.replace('\\', "/"));
    }
    if server.drop_parameters {
        grow(&mut all, without_parameters);
    }
    let mut shaped = Vec::with_capacity(all.len());
    for path in all {
        let (merged_first, resolved_first) = (merged(&path), resolved(&path));
        add(&mut shaped, resolved(&merged_first));
        add(&mut shaped, merged(&resolved_first));
        add(&mut shaped, merged_first);
        add(&mut shaped, resolved_first);
        add(&mut shaped, path);
    }
    shaped
}

/// Adds what becomes of each path.
fn grow(paths: &mut Vec<String>, change: impl Fn(&str) -> String) {
    for index in 0..paths.len() {
        let changed = change(&paths[index]);
        add(paths, changed);
    }
}

fn add(paths: &mut Vec<String>, path: String) {
    if !paths.contains(&path) {
        paths.push(path);
    }
}

/// Without escapes, but for those of slashes where they are kept.
fn decoded(path: &str, slashes: bool) -> String {
    let mut decoded = Vec::with_capacity(path.len());
    for (byte, escaped) in bytes(path) {
        match byte {
            b'/' if escaped && !slashes => decoded.extend_from_slice(b"%2F"),
            byte => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Each segment up to its first `;`.
fn without_parameters(path: &str) -> String {
    let segments = path.split('/');
    let kept = segments.map(|segment| segment.split(';').next().unwrap_or_default());
    kept.collect::<Vec<_>>().join("/")
}
