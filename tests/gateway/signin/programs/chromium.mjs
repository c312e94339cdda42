// A real browser: sets the gateway up, signs in, looks at the consent page and allows a client.
// Knows no expectation. Arguments: the folder of puppeteer-core, the browser, the address to begin with, then fields as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [, , folder, executablePath, address, given] = process.argv;
const fields = JSON.parse(given);
const installed = createRequire(path.join(folder, "package.json"));
const { default: puppeteer } = await import(pathToFileURL(installed.resolve("puppeteer-core")));
const args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
const browser = await puppeteer.launch({ executablePath, args, headless: true, timeout: 120_000 });
const seen = { titles: [], console: [], outside: [] };
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  page.on("console", (message) => seen.console.push(message.text()));
  await page.setJavaScriptEnabled(false);
  let sent;
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (request.url().startsWith(fields.redirect)) sent = request.url();
    // Nobody listens where the client is; what the browser shows about that is its own affair.
    else if (!sent && url.origin !== new URL(address).origin) seen.outside.push(request.url());
  });
  const submit = async (values, button) => {
    for (const [name, value] of Object.entries(values)) await page.type(`input[name=${name}]`, value);
    await Promise.all([page.waitForNavigation(), page.click(button)]);
    seen.titles.push(await page.title());
  };
  await page.goto(`${new URL(address).origin}/oauth/setup`);
  seen.titles.push(await page.title());
  const { code, name, password } = fields;
  await submit({ code, name, password }, "button.yes");
  await page.deleteCookie(...(await page.cookies()));
  await page.goto(address);
  seen.titles.push(await page.title());
  await submit({ name, password: "wrong password" }, "button.yes");
  await submit({ name, password }, "button.yes");
  seen.labels = await page.$$eval("button", (all) => all.length).catch(() => -1);
  const tree = await page.accessibility.snapshot();
  seen.names = (tree?.children ?? []).map((node) => [node.role, node.name]);
  seen.cookies = (await page.cookies()).map(({ name, httpOnly, sameSite }) => [name, httpOnly, sameSite]);
  await Promise.all([
    page.waitForRequest((request) => request.url().startsWith(fields.redirect)),
    page.click("button.yes").catch(() => undefined),
  ]);
  seen.sent = sent;
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
