//! What nginx answers where nothing is to be had: the dullest web server there is, byte for byte, without a version
//! (`server_tokens off`). No input or output happens here.
//!
//! It knows one page, which is `return 404`: the same for every path and method, so that there is nothing else to get
//! right. The rules by which a request is no request are those of nginx 1.22 (src/http/ngx_http_parse.c,
//! src/http/ngx_http_request.c). A body in chunks is not read: the connection ends after the answer.

use std::time::SystemTime;

/// Bytes of a line, and of a request's head, at most (`large_client_header_buffers 4 8k`).
const LINE: usize = 8 * 1024;
const HEAD: usize = 4 * LINE;
/// Bytes of a body, at most (`client_max_body_size 1m`).
const BODY: u64 = 1024 * 1024;
/// So much is appended to errors for browsers that would show a page of their own instead of a short one (`msie_padding`).
const PADDING: &str = "<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n";
const PADDINGS: usize = 6;

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// In the clear, where TLS is spoken.
    Plain,
    /// Inside TLS.
    Tls,
}

/// What a request is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the request's head.
    pub(crate) head: usize,
    /// Bytes of its body, which follow and mean nothing.
    pub(crate) body: u64,
    /// Whether another request may follow.
    pub(crate) keep: bool,
}

/// A status, and what its page says beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    status: &'static str,
    note: Option<&'static str>,
}

const fn page(status: &'static str) -> Page {
    Page { status, note: None }
}

const fn noted(note: &'static str) -> Page {
    Page { status: "400 Bad Request", note: Some(note) }
}

const BAD: Page = page("400 Bad Request");
const PLAIN: Page = noted("The plain HTTP request was sent to HTTPS port");
const LONG: Page = noted("Request Header Or Cookie Too Large");
const NOT_FOUND: Page = page("404 Not Found");
const NOT_ALLOWED: Page = page("405 Not Allowed");
const LARGE_BODY: Page = page("413 Request Entity Too Large");
const LONG_URI: Page = page("414 Request-URI Too Large");
const NO_SUCH_CODING: Page = page("501 Not Implemented");
const NO_SUCH_VERSION: Page = page("505 HTTP Version Not Supported");

/// The line that begins a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    is_head: bool,
    is_trace: bool,
    /// 0.9, 1.0 or 1.1, times ten.
    version: u8,
}

/// What the lines after it say, as far as it matters.
#[derive(Debug, Default)]
struct Fields {
    host: bool,
    body: Option<u64>,
    chunked: bool,
    close: bool,
    keep: bool,
    padded: bool,
}

/// The answer to the request that these bytes begin with. With `last` no other may follow. `None`: more of it is needed;
/// there is an answer before 40 KiB.
pub(crate) fn answer(bytes: &[u8], door: Door, last: bool, now: SystemTime) -> Option<Answer> {
    let mut fields = Fields::default();
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = match line(bytes, blank) {
        Ok(line) => line,
        Err(so_far) => {
            let page = match start(&so_far[..so_far.len().min(LINE)], false) {
                Err(page) => page,
                _ if so_far.len() >= LINE => LONG_URI,
                _ => return None,
            };
            return Some(Answer::close(page, &Fields::default(), None, now));
        }
    };
    let start = match start(&bytes[blank..line], true) {
        _ if line - blank > LINE => return Some(Answer::close(LONG_URI, &fields, None, now)),
        Err(page) => return Some(Answer::close(page, &fields, None, now)),
        Ok(None) => return Some(Answer::close(BAD, &fields, None, now)),
        Ok(Some(start)) => start,
    };
    let mut at = line + 1;
    if start.version > 9 {
        loop {
            let end = match self::line(bytes, at) {
                Ok(end) => end,
                Err(so_far) if so_far.len() > LINE || bytes.len() >= HEAD => {
                    return Some(Answer::close(LONG, &fields, Some(start), now));
                }
                Err(_) => return None,
            };
            let field = trim_end(&bytes[at..end]);
            if end - at > LINE || end > HEAD {
                return Some(Answer::close(LONG, &fields, Some(start), now));
            }
            at = end + 1;
            if field.is_empty() {
                break;
            }
            if let Err(page) = fields.take(field, start.version) {
                return Some(Answer::close(page, &fields, Some(start), now));
            }
        }
    }
    let page = fields.judge(start, door);
    if page != NOT_FOUND {
        return Some(Answer::close(page, &fields, Some(start), now));
    }
    let wanted = if start.version > 10 { !fields.close } else { fields.keep && !fields.close };
    let keep = wanted && !last && !fields.chunked && start.version > 9;
    let body = fields.body.unwrap_or(0);
    Some(Answer { head: at, body, keep, bytes: text(page, &fields, Some(start), keep, now) })
}

/// Where the line from `at` on ends, or what there is of it.
fn line(bytes: &[u8], at: usize) -> Result<usize, &[u8]> {
    let rest = &bytes[at..];
    rest.iter().position(|byte| *byte == b'\n').map(|len| at + len).ok_or(rest)
}

fn trim_end(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Reads the first line, of which `whole` says whether its end is there. `None`: it may go on as a request.
fn start(line: &[u8], whole: bool) -> Result<Option<Start>, Page> {
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'_' | b'-');
    let method = &line[..line.iter().take_while(|byte| is_method(byte)).count()];
    let Some((b' ', rest)) = line[method.len()..].split_first() else {
        return if line.len() == method.len() { Ok(None) } else { Err(BAD) };
    };
    if method.is_empty() {
        return Err(BAD);
    }
    // Of a line whose end is not there yet a part of it may be.
    let rest = trim_end(rest).trim_ascii_start();
    let target = &rest[..rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len())];
    check_target(target, whole || target.len() < rest.len())?;
    let version = match rest[target.len()..].trim_ascii() {
        b"" if whole => 9,
        version => match check_version(version, whole)? {
            None => return Ok(None),
            Some(version) => version,
        },
    };
    if version == 9 && method != b"GET" {
        return Err(BAD);
    }
    Ok(Some(Start { is_head: method == b"HEAD", is_trace: method == b"TRACE", version }))
}

/// Whether a target is one that nginx would look up. Only what is there yet is judged, unless it is all there is.
fn check_target(target: &[u8], whole: bool) -> Result<(), Page> {
    let path = match target {
        [] => return if whole { Err(BAD) } else { Ok(()) },
        [b'/', ..] => target,
        _ => {
            let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
            let scheme = target.iter().take_while(|byte| is_scheme(byte)).count();
            let rest = &target[scheme..];
            if !target[0].is_ascii_alphabetic() || !b"://".starts_with(&rest[..rest.len().min(3)]) {
                return Err(BAD);
            }
            let Some(host) = rest.get(3..) else { return if whole { Err(BAD) } else { Ok(()) } };
            let path = host.iter().position(|byte| *byte == b'/').unwrap_or(host.len());
            if whole && path == 0 {
                return Err(BAD);
            }
            &host[path..]
        }
    };
    if path.iter().any(|byte| byte.is_ascii_control()) {
        return Err(BAD);
    }
    if !whole {
        return Ok(());
    }
    let mut depth = 0_usize;
    let path = path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    for part in path.split(|byte| *byte == b'/').skip(1) {
        for (at, _) in part.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
            match part.get(at + 1..at + 3) {
                Some([b'0', b'0']) | None => return Err(BAD),
                Some(digits) if !digits.iter().all(u8::is_ascii_hexdigit) => return Err(BAD),
                Some(_) => {}
            }
        }
        match part {
            b"" | b"." => {}
            b".." => depth = depth.checked_sub(1).ok_or(BAD)?,
            _ => depth += 1,
        }
    }
    Ok(())
}

/// Reads `HTTP/1.1`, to the tenth.
fn check_version(version: &[u8], whole: bool) -> Result<Option<u8>, Page> {
    const PREFIX: &[u8] = b"HTTP/";
    let incomplete = if whole { Err(BAD) } else { Ok(None) };
    match version.split_at_checked(PREFIX.len()) {
        None if PREFIX.starts_with(version) => incomplete,
        Some((PREFIX, number)) => match number {
            [b'2'..=b'9', ..] => Err(NO_SUCH_VERSION),
            [] | [b'1'] | [b'1', b'.'] => incomplete,
            [b'1', b'.', minor @ ..] if minor.len() < 3 && minor.iter().all(u8::is_ascii_digit) => {
                Ok(whole.then_some(if minor == b"0" { 10 } else { 11 }))
            }
            _ => Err(BAD),
        },
        _ => Err(BAD),
    }
}

impl Fields {
    /// Takes a line.
    fn take(&mut self, line: &[u8], version: u8) -> Result<(), Page> {
        let len = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..len], line.get(len + 1..).unwrap_or_default().trim_ascii());
        if name.is_empty() || name.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) || value.contains(&0) {
            return Err(BAD);
        }
        let has = |word: &[u8]| value.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        match name.to_ascii_lowercase().as_slice() {
            b"host" => {
                let wrong = |byte: &u8| *byte <= b' ' || matches!(byte, b'/' | 0x7f);
                let doubled = value.windows(2).any(|pair| pair == b"..");
                if self.host || value.is_empty() || value.iter().any(wrong) || doubled {
                    return Err(BAD);
                }
                self.host = true;
            }
            b"content-length" => {
                let text = str::from_utf8(value).unwrap_or_default();
                let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                if self.body.is_some() || !is_number {
                    return Err(BAD);
                }
                // What is too long for a number is too long for a body.
                self.body = Some(text.parse().unwrap_or(u64::MAX));
            }
            b"transfer-encoding" if version < 11 => return Err(BAD),
            b"transfer-encoding" if value.eq_ignore_ascii_case(b"chunked") => self.chunked = true,
            b"transfer-encoding" => return Err(NO_SUCH_CODING),
            b"connection" => {
                self.close |= has(b"close");
                self.keep |= has(b"keep-alive");
            }
            b"user-agent" => {
                let is = |word: &[u8]| value.windows(word.len()).any(|part| part == word);
                self.padded = !is(b"Opera") && (is(b"MSIE ") || (is(b"Chrome/") && !is(b"Gecko/")));
            }
            _ => {}
        }
        Ok(())
    }

    /// What there is for a request that has come as a whole.
    fn judge(&self, start: Start, door: Door) -> Page {
        if start.version > 10 && !self.host || self.chunked && self.body.is_some() {
            BAD
        } else if start.is_trace {
            NOT_ALLOWED
        } else if door == Door::Plain {
            PLAIN
        } else if self.body.is_some_and(|bytes| bytes > BODY) {
            LARGE_BODY
        } else {
            NOT_FOUND
        }
    }
}

impl Answer {
    /// The last on its connection.
    fn close(page: Page, fields: &Fields, start: Option<Start>, now: SystemTime) -> Self {
        Self { bytes: text(page, fields, start, false, now), head: 0, body: 0, keep: false }
    }
}

fn text(page: Page, fields: &Fields, start: Option<Start>, keep: bool, now: SystemTime) -> Vec<u8> {
    let Page { status, note } = page;
    let title = note.map_or(status.to_owned(), |note| format!("400 {note}"));
    let note = note.map(|note| format!("<center>{note}</center>\r\n")).unwrap_or_default();
    let padding = PADDING.repeat(if fields.padded { PADDINGS } else { 0 });
    let body = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>\r\n{note}\
         <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n{padding}"
    );
    if start.is_some_and(|start| start.version == 9) {
        return body.into_bytes();
    }
    let (date, len) = (httpdate::fmt_http_date(now), body.len());
    let connection = if keep { "keep-alive" } else { "close" };
    let body = if start.is_some_and(|start| start.is_head) { "" } else { &body };
    format!(
        "HTTP/1.1 {status}\r\nServer: nginx\r\nDate: {date}\r\nContent-Type: text/html\r\nContent-Length: {len}\r\n\
         Connection: {connection}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn ask(bytes: &[u8]) -> Option<Answer> {
        answer(bytes, Door::Tls, false, UNIX_EPOCH)
    }

    #[test]
    fn a_request_is_answered_when_it_is_complete() {
        let request = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        for len in 0..request.len() - 2 {
            assert_eq!(ask(&request[..len]), None, "{len}");
        }
        let answer = ask(request).unwrap();
        assert_eq!((answer.head, answer.body, answer.keep), (request.len() - 2, 2, true));
        assert!(
            answer.bytes.starts_with(b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nDate: Thu, 01 Jan 1970 ")
        );
    }

    #[test]
    fn one_without_a_version_is_answered_when_its_line_has_ended() {
        let request = b"GET /\r\n";
        for len in 0..request.len() {
            assert_eq!(ask(&request[..len]), None, "{len}");
        }
        assert!(ask(request).unwrap().bytes.starts_with(b"<html>\r\n<head><title>404 "));
    }

    #[test]
    fn what_is_no_request_is_told_at_the_first_byte_that_is_wrong() {
        for (bytes, wrong) in [(&b"\x9b"[..], 1), (b"GeT", 2), (b"GET x y", 6), (b"GET / HXTP", 8)] {
            for len in 0..bytes.len() {
                assert_eq!(ask(&bytes[..len]).is_some(), len >= wrong, "{bytes:?} {len}");
            }
            assert!(ask(bytes).unwrap().bytes.starts_with(b"HTTP/1.1 400 "), "{bytes:?}");
        }
    }

    #[test]
    fn no_request_is_waited_for_without_end() {
        let line = "GET / HTTP/1.1\r\nHost: ";
        for (endless, more, most) in [
            ("\n", "X: a\r\n", LINE),
            ("G", "x", LINE),
            ("GET /", "x", LINE),
            (line, "x", line.len() + LINE),
            ("GET / HTTP/1.1\r\nHost: a\r\n", "X: a\r\n", HEAD),
        ] {
            let bytes = endless.to_owned() + &more.repeat(HEAD);
            let answered = (0..=most).rev().take(10).any(|len| ask(&bytes.as_bytes()[..len]).is_some());
            assert!(answered, "{endless}");
        }
    }

    /// What is a request, and what nearly is one.
    fn requests() -> impl Strategy<Value = String> {
        let line = "(GET|HEAD|POST|TRACE) {1,2}(/|/|http://a|x)(a|%0a|%61|%|\\.|/|\\?|#|\u{7f}){0,5}";
        let field =
            "(Host|Content-Length|Connection|Transfer-Encoding|A b)(: ?|)(a|1|close|chunked|a/|\0)?\r?\n";
        let version = "(| HTTP/1\\.0| HTTP/1\\.1| HTTP/1\\.9| HTTP/2| HTTP/x)\r?\n";
        (line, version, proptest::collection::vec(field, 0..4), "(\r?\n)?[GET /1.\r\n]{0,12}")
            .prop_map(|(line, version, fields, rest)| [line, version, fields.concat(), rest].concat())
    }

    proptest! {
        /// Nothing panics, and what is answered is answered the same when more has come.
        #[test]
        fn any_bytes(bytes in prop_oneof!["[GETHP/1. :%a\r\n\0?#\u{7f}-]{0,80}", requests()]) {
            let bytes = bytes.as_bytes();
            let first = (0..=bytes.len()).find_map(|len| ask(&bytes[..len]));
            prop_assert_eq!(first.map(|answer| answer.bytes), ask(bytes).map(|answer| answer.bytes));
        }
    }
}
