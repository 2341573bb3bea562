//! The Ansible role and its playbooks: ansible-lint, and a run against machines, as over SSH.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    machine::{self, BENCH, Machine},
    python, quiet, wait_for,
};
use crate::dist::OUT;

const DIRECTORY: &str = "dist/ansible";
const LINKS: &str = "target/dist/ansible/links.txt";

pub(super) fn lint() -> Result<()> {
    quiet(
        Command::new(python::programs()?.join("ansible-lint"))
            .args(["--offline", "--strict", "--profile", "production"])
            .env("PATH", path()?)
            .current_dir(DIRECTORY),
    )
}

/// Two servers are set up; then one of them retires.
pub(super) fn serve_and_rotate() -> Result<()> {
    let directory = Path::new(OUT).join("ansible");
    fs::create_dir_all(&directory)?;
    let (stays, retires) = (Machine::boot()?, Machine::boot()?);
    for machine in [&stays, &retires] {
        stand_in_servers(machine)?;
    }
    let before = inventory(&directory, "before", &[&stays, &retires], &[])?;
    play("site.yml", &before, &[])?;
    let links = fs::read_to_string(LINKS)?;
    for machine in [&stays, &retires] {
        let link = format!("https://wa.me/proxy?host=proxy-{}.example.org&", machine.first);
        ensure!(links.contains(&link), "{LINKS} is without {link}: {links}");
    }
    ensure!(links.lines().count() == 2, "{LINKS} has something else than two links: {links}");
    unchanged("site.yml", &before, &[])?;

    let mistake = play("site.yml", &before, &["--extra-vars", "setu_configuration='nonsense = 1'"]);
    ensure!(mistake.is_err(), "it takes a configuration that setu cannot use");
    quiet(&mut stays.command(&["grep", "--quiet", "listener", "/etc/setu/setu.toml"]))?;

    let after = inventory(&directory, "after", &[&stays], &[&retires])?;
    let purge = ["--extra-vars", "setu_purge=true"];
    play("rotate.yml", &after, &purge)?;
    quiet(&mut stays.command(&["systemctl", "is-active", "setu.service"]))?;
    quiet(&mut retires.command(&["sh", "-c", "! test -e /usr/bin/setu && ! test -e /etc/setu"]))?;
    unchanged("rotate.yml", &after, &purge)?;
    let nowhere = inventory(&directory, "nowhere", &[], &[&stays])?;
    ensure!(play("rotate.yml", &nowhere, &[]).is_err(), "the last server retires");
    quiet(&mut stays.command(&["systemctl", "is-active", "setu.service"]))
}

/// WhatsApp's servers in a machine, with its resolver, and an authority that it trusts.
fn stand_in_servers(machine: &Machine) -> Result<()> {
    let serve = format!(
        "echo nameserver 127.0.0.53 >/etc/resolv.conf
        systemd-run --quiet {BENCH} stand-in-servers 127.0.0.53:53 /root/authority.pem"
    );
    quiet(&mut machine.command(&["sh", "-c", &serve]))?;
    wait_for("the stand-in servers", || {
        Ok(machine.command(&["test", "-s", "/root/authority.pem"]).status()?.success())
    })?;
    let trust = "mkdir -p /etc/ssl/certs && cat /root/authority.pem >>/etc/ssl/certs/ca-certificates.crt";
    quiet(&mut machine.command(&["sh", "-c", trust]))
}

fn inventory(directory: &Path, name: &str, serve: &[&Machine], retire: &[&Machine]) -> Result<String> {
    // JSON is YAML. A machine's name is that of its first process, by which machine-ssh.sh enters it.
    let hosts = |machines: &[&Machine]| {
        let hosts = machines.iter().map(|Machine { first, .. }| {
            format!(r#""{first}": {{"setu_host": "proxy-{first}.example.org"}}"#)
        });
        hosts.collect::<Vec<_>>().join(", ")
    };
    let here = env::current_dir()?;
    let package = here.join(machine::package()?);
    let text = format!(
        r#"
all:
  vars:
    ansible_connection: ssh
    ansible_ssh_executable: {here}/xtask/src/dist/machine-ssh.sh
    ansible_ssh_transfer_method: piped
    ansible_user: root
    ansible_python_interpreter: /usr/bin/python3
    setu_package: {package}
    setu_links_file: {here}/{LINKS}
    setu_configuration: |
      [[listener]]
      name = "all"
      bind = ["0.0.0.0:443"]
      mode = "auto"
      chat = "chat"
      media = "media"
      [upstream.chat]
      endpoints = ["g.whatsapp.net:15222"]
      [upstream.media]
      endpoints = ["whatsapp.net:1443"]
      [security]
      allow_private_upstreams = true
  children:
    setu: {{"hosts": {{{serve}}}}}
    setu_retiring: {{"hosts": {{{retire}}}}}
"#,
        here = here.display(),
        package = package.display(),
        serve = hosts(serve),
        retire = hosts(retire),
    );
    let file = directory.join(format!("{name}.yml"));
    fs::write(&file, text)?;
    Ok(here.join(file).display().to_string())
}

/// Runs a playbook; returns its recap, a line for each host.
fn play(playbook: &str, inventory: &str, arguments: &[&str]) -> Result<String> {
    let playbook = Path::new(DIRECTORY).join(playbook);
    let played = python::tool("ansible-playbook")?
        .arg("--inventory")
        .arg(inventory)
        .arg(&playbook)
        .args(arguments)
        .env("PATH", path()?)
        .env("ANSIBLE_PIPELINING", "true")
        .env("ANSIBLE_NOCOLOR", "true")
        .output()?;
    let said = String::from_utf8_lossy(&[played.stdout, played.stderr].concat()).into_owned();
    ensure!(played.status.success(), "{}: {said}", playbook.display());
    let (_, recap) = said.split_once("PLAY RECAP").context("there is no recap")?;
    Ok(recap.to_owned())
}

/// Runs a playbook again, which changes nothing.
fn unchanged(playbook: &str, inventory: &str, arguments: &[&str]) -> Result<()> {
    let recap = play(playbook, inventory, arguments)?;
    let hosts: Vec<_> = recap.lines().filter(|line| line.contains("changed=")).collect();
    ensure!(!hosts.is_empty(), "{playbook} ran nowhere");
    let changed = hosts.iter().find(|line| !line.contains("changed=0 "));
    ensure!(changed.is_none(), "a second run of {playbook} changes something: {recap}");
    Ok(())
}

/// Programs of the checks come first: ansible-lint calls others of them.
fn path() -> Result<String> {
    Ok(format!("{}:{}", python::programs()?.display(), env::var("PATH")?))
}
