//! The binary `setu`: parses, runs, and maps errors to exit codes: 2 usage, 64 bad configuration, 1 otherwise.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use setu::{
    cli::{CertCommand, Cli, Command, WireCommand},
    config::ConfigError,
    front::tls::{self, CertificateError, TlsSettings},
    lifecycle::{self, privilege::PrivilegeError},
    log,
    operator::{
        check, doctor,
        init::{self, InitError},
        reload, share, status, wire,
    },
};

/// `EX_USAGE` of sysexits.h, here for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;
/// As clap has it.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the doctor's own dialing would log, it tells; and its first line is the conclusion.
    if !matches!(cli.command, Command::Doctor(_)) {
        log::init();
    }
    if let Some(origin) = cli.command.unnamed_origin() {
        log::aside(&format!("the configuration is {origin}"));
    }
    let writes_only = !matches!(cli.command, Command::Run(_));
    match run(cli) {
        Ok(code) => code,
        // Whoever reads it has read enough, as head(1) does.
        Err(error) if writes_only && is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            log::last_words(&format!("setu: {error:#}"));
            let is_configured = error.downcast_ref().is_some_and(PrivilegeError::is_configured);
            if error.is::<ConfigError>() || error.is::<CertificateError>() || is_configured {
                ExitCode::from(BAD_CONFIGURATION)
            } else if error.downcast_ref().is_some_and(InitError::is_usage) {
                ExitCode::from(BAD_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(args) => lifecycle::run(args).map(|()| ExitCode::SUCCESS),
        Command::Init(args) => {
            write!(io::stdout(), "{}", init::run(&args)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(args) => {
            let report = check::report(&args.config()?, args.file().path());
            io::stdout().write_all(report.text.as_bytes())?;
            Ok(if report.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Reload(args) => {
            let outcome = reload::run(&args)?;
            writeln!(io::stdout(), "{outcome}")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(args) => {
            let diagnosis = match args.remote() {
                Some(link) => doctor::examine_remote(&link),
                None => doctor::examine(&args.run.config()?),
            }?;
            let text = if args.json { diagnosis.json()? } else { diagnosis.text() };
            io::stdout().write_all(text.as_bytes())?;
            Ok(ExitCode::from(diagnosis.conclusion.exit_code()))
        }
        Command::Status(args) => status::run(&args, &mut io::stdout()).map(ExitCode::from),
        Command::Share(args) => {
            let link = args.link()?;
            for warning in link.warnings() {
                log::aside(&format!("warning: {warning}"));
            }
            if let Some(doubt) = args.doubt() {
                log::aside(&doubt);
            }
            let files =
                args.out.map(|out| share::write(&link, &args.format, &out)).transpose()?.unwrap_or_default();
            let mut stdout = io::stdout();
            if args.json {
                writeln!(stdout, "{}", share::json(&link, &files)?)?;
            } else {
                write!(stdout, "{}\n\n{}", link.url(), link.terminal(stdout.is_terminal()))?;
                for file in files {
                    writeln!(stdout, "wrote {}", file.display())?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Wire(command) => {
            let text = match command {
                WireCommand::Show => wire::show(),
                WireCommand::Clear => wire::clear(),
            }?;
            write!(io::stdout(), "{text}")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Cert(args) => {
            let config = args.config()?;
            let settings = TlsSettings::from(&config.tls);
            if matches!(args.command, CertCommand::New) {
                // As `run` would: what is refused there is not written into here.
                lifecycle::privilege::refuse_shared(&config)?;
            }
            let description = match args.command {
                CertCommand::Show => tls::show(&settings),
                CertCommand::New => tls::renew(&settings),
            }?;
            writeln!(io::stdout(), "{description}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
