//! The keys that a file may have, what each is written as, and what it does.
//!
//! serde's errors name neither the path of a key nor what to write instead. So a file is held against this table before
//! it is deserialised, and what deserialises afterwards cannot fail.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What a key is written as. The text is the remedy for one that is written otherwise.
pub(super) enum Form {
    /// One string.
    Text(&'static str),
    /// An array of strings.
    Texts(&'static str),
    /// An integer of 32 bits without a sign.
    Number(&'static str),
    /// `true` or `false`.
    Switch,
    /// `[NAME]`.
    Table(&'static [Key]),
    /// Any number of `[[NAME]]`.
    Tables(&'static [Key]),
    /// Any number of `[NAME.CHOSEN]`.
    Named(&'static [Key]),
}

/// A key of a table.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) form: Form,
    required: bool,
    /// Whether a change of it takes a restart.
    pub(super) fixed: bool,
    about: &'static str,
}

/// What is wrong with a key. The file's name is not known here.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) key: String,
    pub(super) problem: String,
    pub(super) remedy: String,
}

const fn key(name: &'static str, form: Form, about: &'static str) -> Key {
    Key { name, form, required: false, fixed: false, about }
}

const fn required(name: &'static str, form: Form, about: &'static str) -> Key {
    Key { required: true, ..key(name, form, about) }
}

const fn fixed(name: &'static str, form: Form, about: &'static str) -> Key {
    Key { fixed: true, ..key(name, form, about) }
}

/// Declares the keys of a table. What stands above a key is what it does.
macro_rules! keys {
    ($($(#[doc = $about:literal])+ $make:ident($name:literal, $form:expr),)+) => {
        &[$($make($name, $form, concat!($($about),+))),+]
    };
}

pub(super) const BIND: &str = "write IP:port, for example \"0.0.0.0:5222\" or \"[::]:5222\"";
pub(super) const BYTES: &str = "write a size such as \"256MiB\" or \"1GiB\"";
pub(super) const CLIENT_ADDRESSES: &str = "write \"never\", \"truncated\" or \"full\"";
pub(super) const DIAL: &str = "write \"first_byte\" or \"accept\"";
pub(super) const ENDPOINT: &str = "write host:port, an IPv6 address in brackets";
pub(super) const FALLBACK: &str = "write IP:port of your web server, for example \"127.0.0.1:8081\"";
pub(super) const HOST_NAME: &str = "write a name without a port, for example \"setu.example.org\"";
pub(super) const LIMIT: &str = "write a number; 0 is no limit";
pub(super) const MAX_FLOWS: &str = "write a number from 1 to 4000000";
pub(super) const MODE: &str = "write \"chat\", \"chat-tls\", \"media\" or \"auto\"";
pub(super) const MSS: &str = "write a number of bytes from 536 to 8960";
pub(super) const NAME: &str = "write 1 to 64 letters, digits, \"-\" or \"_\": it is used in logs and metrics";
pub(super) const PATH: &str = "write \"auto\", \"wire\", \"sockmap\" or \"userspace\"";
pub(super) const PATTERN: &str =
    "write a name such as \"whatsapp.net\", or \"*.whatsapp.net\" for all below it";
pub(super) const PAUSE: &str = "write a time such as \"10s\"; \"0s\" is none";
pub(super) const PORTS: &str = "write the first and the last, from 1024 on, for example \"10000-31999\"";
pub(super) const POSITIVE: &str = "write a number from 1, or leave the key out";
pub(super) const RANGE: &str = "write a range such as \"10.0.0.0/8\" or \"fd00::/8\"";
pub(super) const ROUTE: &str = "write \"fixed\" or \"sni\"";
pub(super) const SEND: &str = "write \"off\", \"v1\" or \"v2\"";
pub(super) const SERVER: &str = "write the IP or IP:port of a resolver, for example \"9.9.9.9\"";
pub(super) const SOURCE: &str = "write an IP address of this machine";
pub(super) const TIME: &str = "write a time such as \"500ms\", \"5s\" or \"3m\"";
pub(super) const TLS_NAME: &str = "write a name such as \"proxy.example.org\", or an IP address";
const DIRECTORY: &str = "write the name of a directory that setu may write to";
const FILE_NAME: &str = "write the name of a PEM file, relative to this file";
pub(super) const USER: &str = "write the name of a user of this machine, or its number";
const UPSTREAM: &str = "write the name of an upstream, for example \"chat\"";

/// All keys, each with what it does in Markdown: `docs/configuration.md` and setu.toml(5) are made of it.
pub(super) const FILE: &[Key] = keys! {
    /// How bytes move.
    key("relay", Form::Table(RELAY)),
    /// What the path `"wire"` may use.
    key("wire", Form::Table(WIRE)),
    /// Addresses that clients connect to, and what is expected of them there. Any `[[listener]]` replaces all of the
    /// defaults, which are below.
    key("listener", Form::Tables(LISTENER)),
    /// Servers that are one to the client; `NAME` is yours to choose. `chat`, `chat-http` and `media` are there by
    /// default: what a file does not say of them stays as it is below.
    key("upstream", Form::Named(UPSTREAMS)),
    /// How long to wait, a day at most.
    key("timeouts", Form::Table(TIMEOUTS)),
    /// How many connections, and what they may hold. A source is an IPv4 address, or the /64 of an IPv6 one; the larger
    /// networks that it is in have limits of their own.
    key("limits", Form::Table(LIMITS)),
    /// Which servers media clients may name.
    key("allow", Form::Table(ALLOW)),
    /// Whom a listener with `accept_proxy_protocol = true` believes.
    key("proxy_protocol", Form::Table(PROXY_PROTOCOL)),
    /// The certificate of listeners where TLS ends, which are those of the modes `chat-tls` and `auto`. Without one
    /// setu makes one; WhatsApp's app does not check who signed it.
    key("tls", Form::Table(TLS)),
    /// How names of servers are resolved.
    key("dns", Form::Table(DNS)),
    /// Where the status page and metrics are served.
    key("admin", Form::Table(ADMIN)),
    /// What logs may tell of clients' addresses.
    key("privacy", Form::Table(PRIVACY)),
    /// What setu may do.
    key("security", Form::Table(SECURITY)),
};

const RELAY: &[Key] = keys! {
    /// `"auto"`: each connection where it is better off: by rewriting packets, without a socket of setu, where the machine
    /// and the privileges allow that (the wire); else in the kernel while it is quiet, if that is possible and safe, else
    /// in userspace. `"wire"`: the same, but setu does not start without the wire. `"sockmap"`: in the kernel, or setu does not start. `"userspace"`: in userspace.
    /// `--path` overrides it.
    fixed("path", Form::Text(PATH)),
};

const WIRE: &[Key] = keys! {
    /// Whether `relay.path = "auto"` may take it, for a machine whose firewall is to see each packet, say.
    fixed("auto", Form::Switch),
    /// Local ports from which upstreams are dialed, none of them one at which setu listens. The system leaves them to setu
    /// (`net.ipv4.ip_local_reserved_ports`). Each source has as many connections to a server as there are ports here.
    fixed("ports", Form::Text(PORTS)),
    /// Connections on the wire at once; others stay in userspace. The kernel takes their memory at once, about 450 bytes
    /// each; with `relay.path = "auto"` a thirty-second part of the memory at most.
    fixed("max_flows", Form::Number(MAX_FLOWS)),
    /// The longest segment that clients are told to send, without options. With one that is less than what upstreams
    /// take, their connections can go on the wire.
    fixed("mss", Form::Number(MSS)),
};

const LISTENER: &[Key] = keys! {
    /// Its name, which no other listener has.
    required("name", Form::Text(NAME)),
    /// Where to listen; at port 0 the system chooses. A port below 1024 that a reload adds takes a restart if setu
    /// was started as root.
    required("bind", Form::Texts(BIND)),
    /// What to expect. `"chat"`: the chat protocol. `"chat-tls"`: the same inside TLS, which ends here. `"media"`:
    /// TLS that is passed through. `"auto"`: all of these, told apart by their first bytes.
    required("mode", Form::Text(MODE)),
    /// Whether connections begin with a PROXY header, version 1 or 2. In mode `auto` those without one are taken as
    /// well.
    key("accept_proxy_protocol", Form::Switch),
    /// Whether nothing but the chat protocol is forwarded as chat. Not in mode `media`, where what is not TLS is
    /// closed in any case.
    key("gate", Form::Switch),
    // Which of these there must be is up to the mode.
    /// Where clients go. Not in mode `auto`.
    key("upstream", Form::Text(UPSTREAM)),
    /// Where the chat protocol goes, in the clear or inside TLS. In mode `auto` alone.
    key("chat", Form::Text(UPSTREAM)),
    /// Where TLS for a name in `allow.sni` goes. In mode `auto` alone.
    key("media", Form::Text(UPSTREAM)),
    /// Your web server, for what comes inside TLS and is no chat; it may be on this machine, and gets it in plain.
    /// Without one a page says that there is nothing. In the clear HTTP is refused, as at any port of TLS. In mode
    /// `auto` alone, with the gate.
    key("fallback", Form::Text(FALLBACK)),
    /// When the upstream is dialed. `"first_byte"`: when the client's first byte is there, inside its TLS where that ends
    /// here; who is silent for `timeouts.inspect` is closed, and has cost the upstream nothing. `"accept"`: at once, for
    /// protocols in which the server speaks first; only for chat without a gate.
    key("dial", Form::Text(DIAL)),
};

const UPSTREAMS: &[Key] = keys! {
    // Only the defaults' upstreams may do without.
    /// The servers. Each connection goes to the one with the fewest connections of those that answer.
    key("endpoints", Form::Texts(ENDPOINT)),
    /// Whether the servers are told each client's address and port, by a PROXY header of version 1 or 2. For `chat`
    /// and `chat-http` the default is `"v1"`, as WhatsApp's own proxy does. Only `"off"` where the route is `"sni"`.
    key("send_proxy_protocol", Form::Text(SEND)),
    /// `"fixed"`: to one of the endpoints. `"sni"`: to the host that the client's TLS names, on port 443, if
    /// `allow.sni` has it, and to one of the endpoints if it names none. No chat can go where the route is `"sni"`.
    key("route", Form::Text(ROUTE)),
    /// Addresses of this machine to dial from, in turn; without any the system chooses. Each has as many connections
    /// to a server as there are local ports.
    key("sources", Form::Texts(SOURCE)),
};

const TIMEOUTS: &[Key] = keys! {
    /// For an upstream to answer, over all its endpoints and their addresses.
    key("connect", Form::Text(TIME)),
    /// For what setu must see of a client first: a PROXY header, a ClientHello, the first byte of chat, or its beginning
    /// behind a gate. All of it together, from the beginning of the connection.
    key("inspect", Form::Text(TIME)),
    /// For a client's TLS handshake, where TLS ends here, and what must be seen inside, from the beginning of the connection.
    key("handshake", Form::Text(TIME)),
    /// While nothing moves in either direction; then the connection is reset.
    key("idle", Form::Text(TIME)),
    /// While nothing moves and one side has finished; then the connection is reset.
    key("half_close", Form::Text(TIME)),
    /// While a peer acknowledges neither bytes nor questions for a sign of life, or has no room for what waits for
    /// it; then it counts as gone.
    key("vanished", Form::Text(TIME)),
    /// For load balancers to send new clients elsewhere when setu stops: for so long it still takes them, and `/readyz`
    /// fails. `"0s"` is for servers that phones connect to themselves. A successor (`setu run --replace`) does not wait
    /// for it.
    key("lame_duck", Form::Text(PAUSE)),
    /// For connections to end by themselves when setu stops; then they are closed. `TimeoutStopSec` of the unit must
    /// be more than this and `lame_duck` together.
    key("drain", Form::Text(TIME)),
};

const LIMITS: &[Key] = keys! {
    /// At once, on all listeners together; others are refused. There are never more than open files and memory allow,
    /// not counting those on the wire, and by default no more than there are source ports for.
    /// When a reload raises it, the kernel path has room for as many as before, and the others go through userspace.
    key("connections", Form::Number(POSITIVE)),
    /// At once from one source. Behind a carrier's NAT thousands of phones may be one source. The networks of a source are
    /// counted as well: an IPv4 /24 may have 16 times as many, an IPv6 /56 4 and a /48 16 times as many as a /64. None has more
    /// than a half of what open files and memory allow, where that is more than 512.
    key("per_source", Form::Number(LIMIT)),
    /// New ones each second from one source, after a burst of ten times as many; for its networks as above. An attempt that
    /// is refused counts.
    key("per_source_rate", Form::Number(LIMIT)),
    /// Sources to which neither applies, such as a load balancer that sends no PROXY headers.
    key("exempt", Form::Texts(RANGE)),
    /// At once in inspection or handshake. By default at least 64. When all are, whoever has been silent for longest is
    /// closed for the next; one source has as many as there are places left, 32 at
    /// least, and a network that it is in twice as many, or a quarter of all.
    key("pending", Form::Number(POSITIVE)),
    /// Bytes that all flows together may have on their way in the kernel. By default a sixteenth of the memory, at
    /// most 256 MiB.
    fixed("kernel_bytes", Form::Text(BYTES)),
};

const ALLOW: &[Key] = keys! {
    /// Names that media clients may ask for. In mode `media` whoever asks for another is refused; in mode `auto` it
    /// is taken for chat inside TLS.
    key("sni", Form::Texts(PATTERN)),
};

const PROXY_PROTOCOL: &[Key] = keys! {
    /// Who may send PROXY headers: your load balancers. Whoever may send them can claim any address for a client.
    key("trusted", Form::Texts(RANGE)),
};

const TLS: &[Key] = keys! {
    /// Your chain, the server's own certificate first; not without `key`. New files are taken up within seconds,
    /// without a reload.
    key("certificate", Form::Text(FILE_NAME)),
    /// Its private key. It may be in the same file.
    key("key", Form::Text(FILE_NAME)),
    /// Names in a certificate that setu makes. The first is also the one that `setu share` takes.
    key("names", Form::Texts(TLS_NAME)),
    /// Where setu keeps the certificate that it made, and where `setu run --replace` finds the setu that runs. It is for
    /// setu alone, and its user's: one with others' files in it, or that everybody may write, is refused.
    fixed("state_dir", Form::Text(DIRECTORY)),
};

const DNS: &[Key] = keys! {
    /// Resolvers to ask, at port 53 if none is named, each when those before it fail or are silent; without any those of
    /// the system.
    key("servers", Form::Texts(SERVER)),
};

const ADMIN: &[Key] = keys! {
    /// Their addresses, none of which should be public. An empty list is nowhere.
    fixed("bind", Form::Texts(BIND)),
    /// Names by which it may be asked, such as that which a reverse proxy before it passes on in `Host`. By an address
    /// or as `localhost` it always may: whoever else asks was sent there by the owner of the name (DNS rebinding).
    key("hosts", Form::Texts(HOST_NAME)),
    /// How long setu may take after its start to find out whether it is ready (`/readyz`): it asks WhatsApp's servers at
    /// once, and is ready when one for chat and one for media has answered, as far as its listeners serve both. When this
    /// is over, those that have failed count as down, and those of which nothing is known yet do not; with more than
    /// `timeouts.connect` there are none of these. `"0s"`: it is ready at once, and connects to no server before a client
    /// comes.
    key("ready_after", Form::Text(PAUSE)),
};

const PRIVACY: &[Key] = keys! {
    /// `"never"`: nothing. `"truncated"`: the network, which is 24 bits of an IPv4 address, 48 of an IPv6 one.
    /// `"full"`: all.
    key("client_addresses", Form::Text(CLIENT_ADDRESSES)),
};

const SECURITY: &[Key] = keys! {
    /// Whether upstreams may be loopback, private and link-local addresses.
    key("allow_private_upstreams", Form::Switch),
    /// Whom setu becomes when it was started as root.
    fixed("user", Form::Text(USER)),
};

/// Holds a file against the table.
pub(super) fn check(file: &Spanned<DeTable<'_>>) -> Result<(), Fault> {
    table(file.get_ref(), &file.span(), FILE, "")
}

fn table(table: &DeTable<'_>, span: &Range<usize>, keys: &[Key], path: &str) -> Result<(), Fault> {
    for (name, value) in table {
        let Some(known) = keys.iter().find(|key| key.name == name.get_ref()) else {
            return Err(unknown(name, keys, path));
        };
        known.check(value, &join(path, known.name))?;
    }
    match keys.iter().find(|key| key.required && !table.contains_key(key.name)) {
        None => Ok(()),
        Some(missing) => Err(Fault {
            span: span.clone(),
            key: join(path, missing.name),
            problem: "it is missing".into(),
            remedy: missing.remedy(),
        }),
    }
}

fn unknown(name: &Spanned<impl AsRef<str>>, keys: &[Key], path: &str) -> Fault {
    let written = name.get_ref().as_ref();
    let distance = |key: &&Key| strsim::osa_distance(key.name, written);
    let remedy = match keys.iter().min_by_key(distance) {
        // A slip of a finger or two, in a word that is long enough to be known by the rest.
        Some(near) if 3 * distance(&near) <= near.name.len().max(written.len()) => {
            format!("write `{}`", near.name)
        }
        _ => {
            let names: Vec<_> = keys.iter().map(|key| key.name).collect();
            format!("the keys here are: {}", names.join(", "))
        }
    };
    Fault { span: name.span(), key: join(path, written), problem: "there is no such key".into(), remedy }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

impl Key {
    fn check(&self, value: &Spanned<DeValue<'_>>, path: &str) -> Result<(), Fault> {
        let wrong = |value: &Spanned<DeValue<'_>>, problem: String| {
            Err(Fault { span: value.span(), key: path.into(), problem, remedy: self.remedy() })
        };
        match (&self.form, value.get_ref()) {
            (Form::Text(_), DeValue::String(_)) | (Form::Switch, DeValue::Boolean(_)) => Ok(()),
            (Form::Number(_), DeValue::Integer(number)) => {
                match u32::from_str_radix(number.as_str(), number.radix()) {
                    Ok(_) => Ok(()),
                    Err(_) => wrong(value, format!("{number} is not between 0 and {}", u32::MAX)),
                }
            }
            (Form::Texts(_), DeValue::Array(items)) => {
                match items.iter().find(|item| !item.get_ref().is_str()) {
                    Some(item) => wrong(item, format!("one of its items is {}", kind(item))),
                    None => Ok(()),
                }
            }
            (Form::Table(keys), DeValue::Table(inner)) => table(inner, &value.span(), keys, path),
            (Form::Tables(keys), DeValue::Array(items)) => {
                for item in items {
                    let DeValue::Table(inner) = item.get_ref() else {
                        return wrong(item, format!("one of its items is {}", kind(item)));
                    };
                    table(inner, &item.span(), keys, path)?;
                }
                Ok(())
            }
            (Form::Named(keys), DeValue::Table(named)) => {
                for (name, item) in named {
                    let path = join(path, name.get_ref());
                    let DeValue::Table(inner) = item.get_ref() else {
                        let problem = format!("it is {}", kind(item));
                        return Err(Fault { span: name.span(), key: path, problem, remedy: self.remedy() });
                    };
                    table(inner, &item.span(), keys, &path)?;
                }
                Ok(())
            }
            _ => wrong(value, format!("it is {}", kind(value))),
        }
    }

    /// What to write.
    fn remedy(&self) -> String {
        match self.form {
            Form::Text(remedy) | Form::Number(remedy) => remedy.into(),
            Form::Texts(remedy) => format!("{remedy}, between [ and ]"),
            Form::Switch => "write true or false".into(),
            Form::Table(_) => format!("write its keys below a line {}", self.heading()),
            Form::Tables(_) | Form::Named(_) => {
                format!("write the keys of each below a line {}", self.heading())
            }
        }
    }

    /// The keys of a table.
    pub(super) fn keys(&self) -> Option<&'static [Key]> {
        match self.form {
            Form::Table(keys) | Form::Tables(keys) | Form::Named(keys) => Some(keys),
            Form::Text(_) | Form::Texts(_) | Form::Number(_) | Form::Switch => None,
        }
    }

    /// The line above the keys of a table.
    pub(super) fn heading(&self) -> String {
        match self.form {
            Form::Tables(_) => format!("[[{}]]", self.name),
            Form::Named(_) => format!("[{}.NAME]", self.name),
            _ => format!("[{}]", self.name),
        }
    }

    /// What it does, in Markdown.
    pub(super) fn about(&self) -> &'static str {
        self.about.trim_start()
    }
}

/// The type of a value, with its article.
fn kind(value: &Spanned<DeValue<'_>>) -> String {
    let noun = value.get_ref().type_str();
    let article = if noun.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {noun}")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, mem, path::Path};

    use super::*;
    use crate::config::Config;

    /// A file of the repository.
    fn file(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
    }

    /// The dotted names of those keys below these that are wanted.
    fn known(keys: &[Key], path: &str, wanted: fn(&Key) -> bool) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for key in keys {
            let path = join(path, key.name);
            match key.keys() {
                Some(keys) => names.extend(known(keys, &path, wanted)),
                None if wanted(key) => {
                    names.insert(path);
                }
                None => {}
            }
        }
        names
    }

    /// The dotted names of all keys in a file.
    fn written(text: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, value) in text.parse::<toml::Table>().unwrap() {
            let inner = |value: &toml::Value| value.as_table().unwrap().clone();
            let tables: Vec<toml::Table> = match (name.as_str(), &value) {
                ("listener", toml::Value::Array(items)) => items.iter().map(inner).collect(),
                ("upstream", toml::Value::Table(named)) => named.values().map(inner).collect(),
                _ => vec![inner(&value)],
            };
            names.extend(tables.iter().flat_map(|table| table.keys()).map(|key| join(&name, key)));
        }
        names
    }

    /// The schema, the raw types, and what is printed have the same keys.
    #[test]
    fn every_key_is_read_and_printed() {
        let names = known(FILE, "", |_| true);
        let text = file("tests/configs/valid/every-key.toml");
        assert_eq!(written(&text), names);
        assert_eq!(written(&Config::parse("f", &text).unwrap().to_string()), names);
    }

    /// In this file every key is another than by default.
    #[test]
    fn what_takes_a_restart_is_marked() {
        let other = Config::parse("f", &file("tests/configs/valid/every-key.toml")).unwrap();
        let fixed: BTreeSet<_> =
            other.takes_restart(&Config::load(None).unwrap()).map(str::to_owned).collect();
        assert_eq!(fixed, known(FILE, "", |key| key.fixed));
        assert_eq!(other.takes_restart(&other).count(), 0);
        let (mut kept, before) = (other.clone(), Config::load(None).unwrap());
        kept.keep_until_restart(&before);
        assert_eq!(
            kept.takes_restart(&before).count(),
            0,
            "a key holds at once, and is said to take a restart"
        );
    }

    /// Keys that the example leaves to setu.toml(5): few operators need them.
    const NOT_IN_THE_EXAMPLE: [&str; 27] = [
        "admin.hosts",
        "admin.ready_after",
        "dns.servers",
        "limits.connections",
        "limits.exempt",
        "limits.kernel_bytes",
        "limits.pending",
        "limits.per_source",
        "limits.per_source_rate",
        "listener.accept_proxy_protocol",
        "listener.chat",
        "listener.dial",
        "listener.fallback",
        "listener.gate",
        "listener.media",
        "proxy_protocol.trusted",
        "security.allow_private_upstreams",
        "security.user",
        "timeouts.handshake",
        "timeouts.inspect",
        "timeouts.lame_duck",
        "timeouts.vanished",
        "upstream.sources",
        "wire.auto",
        "wire.max_flows",
        "wire.mss",
        "wire.ports",
    ];

    #[test]
    fn the_example_has_the_defaults() {
        // What it would be if none of it were a comment; a space follows the # of those that are words.
        let text: String = file("dist/setu.toml")
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')))
            .flat_map(|line| [line, "\n"])
            .collect();
        let mut names = written(&text);
        for name in NOT_IN_THE_EXAMPLE {
            assert!(names.insert(name.into()), "{name} is in the example");
        }
        assert_eq!(names, known(FILE, "", |_| true));

        let (mut config, defaults) = (Config::parse("f", &text).unwrap(), Config::load(None).unwrap());
        for listener in mem::replace(&mut config.listeners, defaults.listeners.clone()) {
            assert!(defaults.listeners.contains(&listener), "{listener:?}");
        }
        // Examples, and it says so.
        (config.tls.files, config.tls.names) = (None, Vec::new());
        assert_eq!(config, defaults);
    }
}
