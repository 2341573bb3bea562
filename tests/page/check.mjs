// Looks at setu's pages in a browser as operators do: on a phone and on a desktop, light and dark, from right to left,
// without scripts; and asks axe-core whether everyone can read them. Cards are looked at, and printed, in each language. The pages are those of a real setu, and others
// that were made of a status that a test cannot wait for.
//
//   node check.mjs SETU MODULES OUT PAGE.html...
//
// SETU: the binary. MODULES: where node_modules is. OUT: where screenshots go.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [setu, modules, out, ...files] = process.argv.slice(2);
const require = createRequire(join(resolve(modules), "from-here.js"));
const puppeteer = require("puppeteer-core").default ?? require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const PATIENCE = 30_000;
const problems = [];
let checks = 0;

function expect(holds, what) {
  checks += 1;
  if (!holds) problems.push(what);
}

// A port that the system had to spare: a link for phones needs one that stays.
function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

// A setu whose upstream is its own process's: nobody answers there, which the page must tell.
async function startSetu(folder) {
  const [chat, media] = [await freePort(), await freePort()];
  const config = join(folder, "setu.toml");
  writeFileSync(
    config,
    `[relay]\npath = "userspace"\n[[listener]]\nname = "chat"\nbind = ["127.0.0.1:${chat}"]\nmode = "chat"\nupstream = "test"\n` +
      `[[listener]]\nname = "media"\nbind = ["127.0.0.1:${media}"]\nmode = "media"\nupstream = "test"\n` +
      `[upstream.test]\nendpoints = ["127.0.0.1:9"]\n[security]\nallow_private_upstreams = true\n` +
      `[admin]\nbind = ["127.0.0.1:0"]\nready_after = "0s"\n`,
  );
  const child = spawn(setu, ["run", "--config", config], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  const found = await new Promise((done, fail) => {
    const timer = setTimeout(() => fail(new Error(`setu does not start: ${log}`)), PATIENCE);
    child.on("exit", () => fail(new Error(`setu ended: ${log}`)));
    child.stderr.on("data", (text) => {
      log += text;
      const plain = log.replaceAll(/\x1b\[[0-9;]*m/g, "");
      const address = (what) => plain.match(new RegExp(`${what} address=(\\S+)`))?.[1];
      if (plain.includes("ready path=")) {
        clearTimeout(timer);
        done({ chat: address("listening listener=chat"), admin: address("admin endpoint") });
      }
    });
  });
  return { child, ...found };
}

// A client that setu cannot serve.
function knock(address) {
  const [host, port] = address.split(":");
  return new Promise((done) => {
    const socket = connect(Number(port), host);
    socket.on("error", () => {});
    socket.on("close", done);
    socket.end("WA");
  });
}

async function look(browser, url, name, { width, dark, rtl, refused }) {
  const page = await browser.newPage();
  const label = `${name}-${width}${dark ? "-dark" : ""}${rtl ? "-rtl" : ""}`;
  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => {
    // The page of an error is one for the browser too.
    if (refused && message.text().startsWith("Failed to load resource")) return;
    problems.push(`${label}: the console says ${message.text()}`);
  });
  page.on("dialog", (dialog) => {
    problems.push(`${label}: a script ran`);
    dialog.dismiss();
  });
  await page.setBypassCSP(false);
  await page.setViewport({ width, height: 900, deviceScaleFactor: 1, isMobile: width < 600 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await page.goto(url, { waitUntil: "load", timeout: PATIENCE });
  if (rtl) await page.evaluate(() => document.documentElement.setAttribute("dir", "rtl"));
  await page.screenshot({ path: join(out, `${label}.png`), fullPage: true });
  expect(requests.length === 1, `${label}: it asked for more than itself: ${requests}`);
  const { wide, scripts, styled } = await page.evaluate(() => ({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    scripts: document.scripts.length,
    // A style that the policy does not allow is none of the document's.
    styled: [...document.styleSheets].some((sheet) => sheet.cssRules.length > 0),
  }));
  expect(wide <= 0, `${label}: it is ${wide} pixels wider than the screen`);
  expect(scripts === 0, `${label}: it has scripts`);
  expect(styled, `${label}: its style does not apply`);
  await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const result = await globalThis.axe.run(document);
    return { passes: result.passes.length, violations: result.violations };
  });
  expect(found.passes > 10, `${label}: axe-core looked at ${found.passes} things only`);
  for (const violation of found.violations) {
    const where = violation.nodes.map((node) => node.target.join(" ")).join(", ");
    problems.push(`${label}: axe-core: ${violation.id}: ${violation.help}: ${where}`);
  }
  const text = await page.evaluate(() => document.body.innerText);
  await page.close();
  return text;
}

// How many sheets of paper a document takes.
async function sheets(browser, url, name) {
  const page = await browser.newPage();
  await page.goto(url, { waitUntil: "load", timeout: PATIENCE });
  const pdf = await page.pdf({ path: join(out, `${name}.pdf`), preferCSSPageSize: true });
  await page.close();
  return Buffer.from(pdf).toString("latin1").match(/\/Type\s*\/Page\b/g)?.length ?? 0;
}

const folder = mkdtempSync(join(tmpdir(), "setu-page-"));
let running;
let browser;
try {
  running = await startSetu(folder);
  browser = await puppeteer.launch({
    executablePath: "/usr/bin/chromium",
    userDataDir: join(folder, "profile"),
    headless: true,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
    ],
  });
  const live = `http://${running.admin}/`;
  const fresh = await look(browser, live, "fresh", { width: 390 });
  expect(fresh.includes("Waiting for the first client"), `a new setu says: ${fresh.slice(0, 200)}`);
  for (let client = 0; client < 5; client += 1) await knock(running.chat);
  const failing = await look(browser, live, "failing", { width: 1440 });
  expect(failing.includes("Not working") && failing.includes("connect_refused"), `it says: ${failing.slice(0, 400)}`);
  expect(failing.includes("Stop that"), "loading again cannot be switched off");
  const week = await look(browser, `${live}?span=week`, "week", { width: 390 });
  expect(week.includes("The first two hours are not over yet"), "the week cannot be chosen");
  const still = await look(browser, `${live}?refresh=off`, "still", { width: 390, dark: true });
  expect(still.includes("Load this page again"), "loading again cannot be switched on");
  const share = `${live}share?host=proxy.example.org`;
  for (const width of [390, 1440]) {
    const form = await look(browser, `${live}share`, "share-form", { width });
    expect(form.includes("Make the link") && !form.includes("wa.me"), `no form: ${form}`);
    const wrong = `${live}share?host=proxy.example.org&chat_port=0`;
    const error = await look(browser, wrong, "share-error", { width, dark: true, refused: true });
    expect(error.includes("This cannot be used") && error.includes("from 1 to 65535"), `no error: ${error}`);
    for (const view of [{ width }, { width, dark: true }]) {
      const link = await look(browser, share, "share", view);
      expect(link.includes("https://wa.me/proxy?host=proxy.example.org&chatPort="), `no link to share: ${link}`);
    }
    await look(browser, `${share}&lang=fa&media_port=x`, "share-error-fa", { width, refused: true });
    await look(browser, `${share}&lang=ar`, "share-ar", { width });
  }
  const page = await (await fetch(share)).text();
  const languages = [...page.matchAll(/share\/card\?lang=(\w+)/g)].map((match) => match[1]);
  expect(languages.length === 16, `cards in ${languages}`);
  for (const language of languages) {
    const card = `${live}share/card?lang=${language}&host=proxy.example.org`;
    for (const width of [390, 1440]) await look(browser, card, `card-${language}`, { width });
    const count = await sheets(browser, card, `card-${language}`);
    expect(count === 1, `card-${language}: it takes ${count} sheets`);
  }
  const said = new Map();
  for (const file of files) {
    const [url, name] = [pathToFileURL(file).href, basename(file, ".html")];
    for (const width of [390, 1440]) {
      for (const dark of [false, true]) said.set(`${name}-${width}`, await look(browser, url, name, { width, dark }));
      await look(browser, url, name, { width, rtl: true });
    }
  }
  // What each state must tell, and that what nobody uses is folded away.
  for (const [view, ...words] of [
    ["busy-390", "Useful connections", "1 hour ago", "port 443", "Without a connection since the start: chat-tls-proxied"],
    ["busy-day-1440", "each quarter of an hour", "24 h ago", "Mbit/s"],
    ["busy-week-390", "each two hours", "Load this page again"],
    ["idle-390", "Nothing since the start", "port 587"],
    ["outage-390", "Not working", "What to do", "Run setu doctor", "Refused by limits each minute"],
  ]) {
    const text = said.get(view) ?? "";
    for (const word of words) expect(text.includes(word), `${view}: it does not say "${word}"`);
    expect(!text.includes("port 8443"), `${view}: listeners without a connection are not folded`);
  }
} catch (error) {
  problems.push(`${error.stack}`);
} finally {
  await browser?.close();
  if (running) {
    running.child.removeAllListeners("exit");
    const ended = new Promise((done) => running.child.on("exit", done));
    running.child.kill("SIGTERM");
    await ended;
  }
  rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
}
for (const problem of problems) console.error(problem);
console.log(`page: ${checks} checks, ${problems.length} problems, screenshots in ${out}`);
process.exitCode = problems.length > 0 || checks === 0 ? 1 : 0;
