// A real browser with an authenticator of its own: signs in by password, adds a passkey, signs in with it, and tries
// what must fail. Knows no expectation. Arguments: the folder of puppeteer-core, the browser, the gateway, fields as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [, , folder, executablePath, origin, given] = process.argv;
const { name, password, address } = JSON.parse(given);
const installed = createRequire(path.join(folder, "package.json"));
const { default: puppeteer } = await import(pathToFileURL(installed.resolve("puppeteer-core")));
const args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
const browser = await puppeteer.launch({ executablePath, args, headless: true, timeout: 120_000 });
const seen = { titles: [], console: [], alerts: [], policies: [] };
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  page.on("console", (message) => seen.console.push(message.text()));
  const devtools = await page.createCDPSession();
  await devtools.send("WebAuthn.enable");
  const device = { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true };
  const options = { ...device, isUserVerified: true, automaticPresenceSimulation: true };
  const { authenticatorId } = await devtools.send("WebAuthn.addVirtualAuthenticator", { options });
  const go = async (action) => {
    const [response] = await Promise.all([page.waitForNavigation(), action()]);
    seen.titles.push(await page.title());
    return response;
  };
  const press = (selector) => go(() => page.click(selector));
  const out = () => devtools.send("Network.clearBrowserCookies");
  await go(() => page.goto(`${origin}/oauth/passkeys`));
  await page.type("input[name=name]", name);
  await page.type("input[name=password]", password);
  await press("button.yes");
  await page.type("input[name=name]", "laptop");
  await page.type("input[name=password]", password);
  const made = await press("button.yes");
  seen.policies.push(made.headers()["content-security-policy"]);
  await press("#go");
  seen.list = await page.$$eval("li strong", (all) => all.map((one) => one.textContent));
  await out();
  // In place of a password, from where a client sent the browser.
  const ask = async () => {
    await go(() => page.goto(address));
    await press("form[action='/oauth/login/passkey'] button");
  };
  await ask();
  const [used] = await Promise.all([
    page.waitForRequest((request) => request.url().endsWith("/oauth/login/passkey/used")),
    press("#go"),
  ]);
  const sent = used.postData();
  seen.sent = await Promise.all([page.waitForRequest((request) => request.url().includes("code=")), page.click("button.yes").catch(() => 0)])
    .then(([request]) => request.url());
  seen.counts = (await devtools.send("WebAuthn.getCredentials", { authenticatorId })).credentials.map((one) => one.signCount);
  // What somebody who saw all of it could send once more.
  const { cookies } = await devtools.send("Network.getAllCookies");
  seen.replay = [sent, Object.fromEntries(cookies.map(({ name, value }) => [name, value]))];
  await out();
  // A device that was not unlocked, and one that counts backwards, as a copy would.
  const { credentials } = await devtools.send("WebAuthn.getCredentials", { authenticatorId });
  await devtools.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified: false });
  await ask();
  await page.click("#go");
  await page.waitForFunction(() => document.getElementById("said").textContent !== "");
  seen.alerts.push(await page.$eval("#said", (node) => node.textContent));
  await devtools.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified: true });
  await devtools.send("WebAuthn.clearCredentials", { authenticatorId });
  await devtools.send("WebAuthn.addCredential", { authenticatorId, credential: { ...credentials[0], signCount: 0 } });
  await ask();
  await press("#go");
  seen.alerts.push(await page.$eval("[role=alert]", (node) => node.textContent));
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
