//! Users of a setu on this machine: flows that go on and on, and visitors that come and go.
//!
//! It prints a line when every flow is open. On standard input `finish` lets the flows come to an orderly end, and
//! `stop` the visitors. Nothing may be lost on the way, and nobody refused.

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    runtime,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{HELLO, MEDIA_HOST};

/// Flows of each kind: chat in the clear, chat inside TLS, media.
const FLOWS: [(Kind, usize); 3] = [(Kind::Chat, 200), (Kind::ChatTls, 200), (Kind::Media, 100)];
/// From message to message of a flow.
const THINK: Duration = Duration::from_millis(200);
/// Visitors at once, and their rest: together below `limits.per_source_rate`.
const VISITORS: usize = 4;
const REST: Duration = Duration::from_millis(50);
/// No answer takes longer, also from a setu that starts again: `timeouts.drain`, and more.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Chat,
    ChatTls,
    Media,
}

#[derive(Default)]
struct Ledger {
    open: AtomicUsize,
    finished: AtomicUsize,
    lost: AtomicUsize,
    served: AtomicUsize,
    failed: AtomicUsize,
    longest_wait_ms: AtomicUsize,
}

#[derive(Clone)]
struct Users {
    ledger: Arc<Ledger>,
    /// Takes any certificate, as the app does.
    any: TlsConnector,
    /// Takes WhatsApp's.
    genuine: TlsConnector,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What the flows and the visitors are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    GoOn,
    Finish,
    Stop,
}

/// Runs them. The certificate in `authority` is whom they trust to name WhatsApp's servers.
///
/// # Errors
/// A flow was lost, or a visitor not served.
pub(crate) fn run(authority: &Path) -> Result<()> {
    let mut roots = RootCertStore::empty();
    let pem = fs::read(authority).with_context(|| authority.display().to_string())?;
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let genuine = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let any = setu_tests::tls::client(&TLS13);
    let users = Users { ledger: Arc::default(), any: any.into(), genuine: genuine.into() };
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(users.run())
}

impl Users {
    async fn run(self) -> Result<()> {
        let (tell, told) = watch::channel(Stage::GoOn);
        let (mut flows, mut visitors) = (JoinSet::new(), JoinSet::new());
        for (kind, count) in FLOWS {
            for number in 0..count {
                flows.spawn(self.clone().flow(kind, number, told.clone()));
            }
        }
        let count = flows.len();
        let mut waited = 0;
        while self.ledger.open.load(Ordering::Relaxed) < count {
            ensure!(self.ledger.lost.load(Ordering::Relaxed) == 0, "not every flow could be opened");
            ensure!(waited < PATIENCE.as_millis(), "the flows do not open");
            sleep(REST).await;
            waited += REST.as_millis();
        }
        println!("{count} flows are open");
        for _ in 0..VISITORS {
            visitors.spawn(self.clone().visitor(told.clone()));
        }
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            tell.send_replace(if line == "finish" { Stage::Finish } else { Stage::Stop });
            if line != "finish" {
                break;
            }
        }
        tell.send_replace(Stage::Stop);
        flows.join_all().await;
        visitors.join_all().await;
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let Ledger { finished, lost, served, failed, longest_wait_ms, .. } = &*self.ledger;
        println!(
            "flows: {} ended orderly, {} lost; visitors: {} served, {} not; the longest waited {:.1} s",
            of(finished),
            of(lost),
            of(served),
            of(failed),
            of(longest_wait_ms) as f64 / 1000.0
        );
        ensure!(of(finished) == count, "flows were lost");
        ensure!(of(failed) == 0 && of(served) > 0, "visitors were not served");
        Ok(())
    }

    /// Exchanges messages until told to finish.
    async fn flow(self, kind: Kind, number: usize, mut told: watch::Receiver<Stage>) {
        let talk = async {
            let mut stream = self.open(kind).await?;
            let mut message = 0;
            while *told.borrow_and_update() < Stage::Finish {
                exchange(&mut *stream, &text(number, message)).await?;
                if message == 0 {
                    self.ledger.open.fetch_add(1, Ordering::Relaxed);
                }
                message += 1;
                // Whichever is first; the flow looks for itself.
                let _ = timeout(THINK, told.changed()).await;
            }
            finish(&mut *stream).await
        };
        let ended = talk.await;
        self.note(&format!("{kind:?} flow {number}"), ended, &self.ledger.finished, &self.ledger.lost);
    }

    /// Comes and goes until told to stop.
    async fn visitor(self, told: watch::Receiver<Stage>) {
        while *told.borrow() < Stage::Stop {
            let begun = Instant::now();
            let visit = async {
                let mut stream = self.open(Kind::Chat).await?;
                exchange(&mut *stream, b"here").await?;
                finish(&mut *stream).await
            };
            let ended = visit.await;
            let wait = begun.elapsed().as_millis() as usize;
            self.ledger.longest_wait_ms.fetch_max(wait, Ordering::Relaxed);
            self.note("visitor", ended, &self.ledger.served, &self.ledger.failed);
            sleep(REST).await;
        }
    }

    fn note(&self, who: &str, ended: io::Result<()>, good: &AtomicUsize, bad: &AtomicUsize) {
        if let Err(error) = &ended {
            println!("{who}: {error}");
        }
        if ended.is_ok() { good } else { bad }.fetch_add(1, Ordering::Relaxed);
    }

    /// Connects as the app does, and has the first answer.
    async fn open(&self, kind: Kind) -> io::Result<Box<dyn Stream>> {
        let port = match kind {
            Kind::Chat => 5222,
            Kind::ChatTls => 443,
            Kind::Media => 587,
        };
        let stream = within(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(MEDIA_HOST).map_err(io::Error::other)?;
        let mut stream: Box<dyn Stream> = match kind {
            Kind::Chat => Box::new(stream),
            Kind::ChatTls => Box::new(within(self.any.connect(name, stream)).await?),
            Kind::Media => Box::new(within(self.genuine.connect(name, stream)).await?),
        };
        exchange(&mut *stream, &HELLO).await?;
        Ok(stream)
    }
}

/// Bounds a wait.
async fn within<T>(wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A message that no other flow sends, nor this one again soon.
fn text(flow: usize, message: usize) -> Vec<u8> {
    (0..message % 500 + 1).map(|at| (at * 7 + message * 13 + flow * 31) as u8).collect()
}

/// Sends a message that comes back.
async fn exchange(stream: &mut dyn Stream, message: &[u8]) -> io::Result<()> {
    let mut echo = vec![0; message.len()];
    within(stream.write_all(message)).await?;
    within(stream.flush()).await?;
    within(stream.read_exact(&mut echo)).await?;
    if echo == message { Ok(()) } else { Err(io::Error::other("another message came back")) }
}

/// Ends the flow, and sees it ended.
async fn finish(stream: &mut dyn Stream) -> io::Result<()> {
    within(stream.shutdown()).await?;
    match within(stream.read(&mut [0])).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("bytes that nobody sent")),
    }
}
