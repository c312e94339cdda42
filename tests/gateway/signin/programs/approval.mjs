// A real browser without scripts: signs in, looks at the calls that wait, opens the first one and approves it.
// Knows no expectation. Arguments: the folder of puppeteer-core, the browser, the address to begin with, then fields as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [, , folder, executablePath, address, given] = process.argv;
const { name, password } = JSON.parse(given);
const installed = createRequire(path.join(folder, "package.json"));
const { default: puppeteer } = await import(pathToFileURL(installed.resolve("puppeteer-core")));
const args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
const browser = await puppeteer.launch({ executablePath, args, headless: true, timeout: 120_000 });
const seen = { titles: [], outside: [] };
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  await page.setJavaScriptEnabled(false);
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(address).origin) seen.outside.push(request.url());
  });
  const go = async (action) => {
    await Promise.all([page.waitForNavigation(), action()]);
    seen.titles.push(await page.title());
  };
  await go(() => page.goto(address));
  await page.type("input[name=name]", name);
  await page.type("input[name=password]", password);
  await go(() => page.click("button.yes"));
  await go(() => page.click("li a"));
  const tree = await page.accessibility.snapshot();
  const flat = (node) => [[node.role, node.name], ...(node.children ?? []).flatMap(flat)];
  seen.names = tree ? flat(tree) : [];
  await go(() => page.click("button.yes"));
  await go(() => page.click("main a"));
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
