//! The demo: what setu is for, on one machine without a network.
//!
//! A chat server and a TLS media server stand in for WhatsApp's, on loopback. Every byte is checked.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, ServerName},
};
use setu_tests::Setu;
use sha2::{Digest as _, Sha256};

use crate::stand_in::{HELLO, MEDIA_HOST};

const CHATS: usize = 50;
const MESSAGES: usize = 1_000;
/// Media bytes each way.
const MEDIA: usize = 64 << 20;
/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(60);

struct Row {
    listener: &'static str,
    connections: usize,
    bytes: u64,
    seconds: f64,
    result: Result<()>,
}

pub(crate) fn run() -> Result<()> {
    let chat = TcpListener::bind("127.0.0.1:0")?;
    let media = TcpListener::bind("127.0.0.1:0")?;
    let config = format!(
        "[[listener]]\nname = \"chat\"\nbind = [\"127.0.0.1:0\"]\nmode = \"chat\"\nupstream = \"chat\"\n\
         [[listener]]\nname = \"media\"\nbind = [\"127.0.0.1:0\"]\nmode = \"media\"\nupstream = \"media\"\n\
         [upstream.chat]\nendpoints = [\"{}\"]\nsend_proxy_protocol = \"off\"\n[upstream.media]\nendpoints = [\"{}\"]\n\
         [security]\nallow_private_upstreams = true\n[admin]\nbind = []\n",
        chat.local_addr()?,
        media.local_addr()?
    );
    let (client_tls, server_tls) = tls()?;
    thread::spawn(move || chat_server(&chat));
    thread::spawn(move || media_server(&media, &server_tls));
    let mut setu = Setu::start(&config);
    let begun = Instant::now();
    let result = chats(setu.address("chat"));
    let bytes = (CHATS * MESSAGES * 2) as u64 * MESSAGE_MEAN + (CHATS * HELLO.len()) as u64;
    let seconds = begun.elapsed().as_secs_f64();
    let mut rows = vec![Row { listener: "chat", connections: CHATS, bytes, seconds, result }];
    let begun = Instant::now();
    let result = media_both_ways(setu.address("media"), &client_tls);
    let seconds = begun.elapsed().as_secs_f64();
    rows.push(Row { listener: "media", connections: 2, bytes: 2 * MEDIA as u64, seconds, result });

    for listener in ["chat", "media"] {
        let count = if listener == "chat" { CHATS } else { 2 };
        // One line more tells that the listener listens.
        setu.wait_count(&format!(" listener={listener}"), count + 1);
    }
    let paths: Vec<String> = rows.iter().map(|row| paths(&setu, row.listener)).collect();
    let (status, reasons) = setu.stop();
    println!("| listener | connections | path, at the end | bytes | seconds | result |");
    println!("| --- | ---: | --- | ---: | ---: | --- |");
    for (Row { listener, connections, bytes, seconds, result }, path) in rows.iter().zip(paths) {
        let result =
            result.as_ref().map_or_else(|error| format!("{error:#}"), |()| "every byte right".into());
        println!("| {listener} | {connections} | {path} | {bytes} | {seconds:.2} | {result} |");
    }
    println!("closed: {reasons:?}");
    ensure!(status.success(), "setu ended with {status}");
    let orderly =
        ["client_closed", "upstream_closed"].iter().filter_map(|reason| reasons.get(*reason)).sum::<u64>();
    ensure!(orderly == CHATS as u64 + 2, "{orderly} of {} connections ended orderly", CHATS + 2);
    rows.into_iter().try_for_each(|row| row.result)
}

/// By which paths a listener's connections moved at their end.
fn paths(setu: &Setu, listener: &str) -> String {
    let count = |path| (setu.count(&format!(" path={path} listener={listener}")), path);
    let used = ["sockmap", "userspace", "none"].map(count).into_iter().filter(|(count, _)| *count > 0);
    used.map(|(count, path)| format!("{count} {path}")).collect::<Vec<_>>().join(", ")
}

/// Mean length of a message: lengths go round from 1 to twice that less one.
const MESSAGE_MEAN: u64 = 256;

fn chat_server(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        thread::spawn(move || -> Result<()> {
            stream.set_nodelay(true)?;
            let mut hello = [0; HELLO.len()];
            stream.read_exact(&mut hello)?;
            ensure!(hello == HELLO, "not the hello");
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => stream.write_all(&buffer[..count])?,
                }
            }
        });
    }
}

fn chats(to: SocketAddr) -> Result<()> {
    thread::scope(|scope| {
        let chats: Vec<_> = (0..CHATS).map(|number| scope.spawn(move || chat(to, number))).collect();
        chats.into_iter().try_for_each(|chat| chat.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

fn chat(to: SocketAddr, number: usize) -> Result<()> {
    let mut stream = connect(to)?;
    stream.write_all(&HELLO)?;
    let mut buffer = [0; 512];
    for message in 0..MESSAGES {
        // Over 1,000 messages the lengths from 1 to 511 come about equally often; the last 489 fill the mean up.
        let len = if message < 511 { message + 1 } else { MESSAGE_MEAN as usize };
        let sent: Vec<u8> = (0..len).map(|at| (at * 7 + message * 13 + number * 31) as u8).collect();
        stream.write_all(&sent)?;
        stream.read_exact(&mut buffer[..len]).with_context(|| format!("message {message} has no answer"))?;
        ensure!(buffer[..len] == sent, "message {message} came back changed");
    }
    Ok(())
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn tls() -> Result<(Arc<ClientConfig>, Arc<ServerConfig>)> {
    let made = rcgen::generate_simple_self_signed([MEDIA_HOST.to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    Ok((Arc::new(client), Arc::new(server)))
}

/// A piece of media: pseudo-random, so that no layer can shorten it.
fn media_bytes() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(MEDIA);
    while bytes.len() < MEDIA {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

/// Answers `D` with media, and `U` and media with their SHA-256.
fn media_server(listener: &TcpListener, config: &Arc<ServerConfig>) {
    while let Ok((stream, _)) = listener.accept() {
        let config = config.clone();
        thread::spawn(move || -> Result<()> {
            let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
            let mut wish = [0];
            stream.read_exact(&mut wish)?;
            if wish == *b"D" {
                stream.write_all(&media_bytes())?;
            } else {
                let mut bytes = vec![0; MEDIA];
                stream.read_exact(&mut bytes)?;
                stream.write_all(&Sha256::digest(&bytes))?;
            }
            stream.conn.send_close_notify();
            stream.flush()?;
            Ok(())
        });
    }
}

fn media_both_ways(to: SocketAddr, config: &Arc<ClientConfig>) -> Result<()> {
    let bytes = media_bytes();
    let expected = Sha256::digest(&bytes);
    let open = || -> Result<_> {
        let name = ServerName::try_from(MEDIA_HOST)?;
        Ok(StreamOwned::new(ClientConnection::new(config.clone(), name)?, connect(to)?))
    };
    let mut download = open()?;
    download.write_all(b"D")?;
    let mut received = vec![0; MEDIA];
    download.read_exact(&mut received).context("the download stopped")?;
    ensure!(Sha256::digest(&received) == expected, "the download has another SHA-256");
    let mut upload = open()?;
    upload.write_all(b"U")?;
    upload.write_all(&bytes).context("the upload stopped")?;
    let mut digest = [0; 32];
    upload.read_exact(&mut digest)?;
    ensure!(digest[..] == expected[..], "the upload arrived with another SHA-256");
    Ok(())
}
