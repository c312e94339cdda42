// Carries out the steps on stdin with the client of the TypeScript SDK 2.x and prints what came back, as JSON.
// Knows no expectation. The first argument is the folder whose node_modules hold the SDK.
import { createRequire } from "node:module";
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";
import path from "node:path";

const installed = createRequire(path.join(process.argv[2], "package.json"));
const load = (name) => import(pathToFileURL(installed.resolve(name)));
const { Client, ProtocolError, StreamableHTTPClientTransport } = await load("@modelcontextprotocol/client");
const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");

async function everyPage(member, fetch) {
  const found = [];
  let cursor;
  do {
    const page = await fetch(cursor === undefined ? {} : { cursor });
    found.push(...page[member]);
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return { result: { [member]: found } };
}

async function callTool(client, step) {
  const progress = [];
  const stop = new AbortController();
  const onprogress = (notice) => {
    progress.push(notice.progress);
    if (progress.length === step.cancel_after) stop.abort("enough");
  };
  const options = step.watch ? { onprogress, signal: stop.signal } : {};
  try {
    const result = await client.callTool({ name: step.name, arguments: step.arguments }, options);
    return { result, progress };
  } catch (error) {
    if (stop.signal.aborted) return { cancelled: true, progress };
    throw error;
  }
}

async function carryOut(client, step) {
  switch (step.do) {
    case "list_tools":
      return everyPage("tools", (params) => client.listTools(params));
    case "list_prompts":
      return everyPage("prompts", (params) => client.listPrompts(params));
    case "list_resources":
      return everyPage("resources", (params) => client.listResources(params));
    case "list_templates":
      return everyPage("resourceTemplates", (params) => client.listResourceTemplates(params));
    case "call_tool":
      return callTool(client, step);
    case "get_prompt":
      return { result: await client.getPrompt({ name: step.name, arguments: step.arguments }) };
    case "read_resource":
      return { result: await client.readResource({ uri: step.uri }) };
    case "complete":
      return { result: await client.complete({ ref: step.ref, argument: step.argument }) };
    case "ping":
      return { result: await client.ping() };
    case "set_level":
      return { result: await client.setLoggingLevel(step.level) };
  }
  throw new Error(`unknown step ${step.do}`);
}

const asked = JSON.parse(await text(process.stdin));
const transport = asked.url
  ? new StreamableHTTPClientTransport(new URL(asked.url))
  : new StdioClientTransport(asked.stdio);
const capabilities = asked.answers ? { elicitation: {}, sampling: {}, roots: {} } : {};
const options = { capabilities, versionNegotiation: { mode: asked.mode } };
const client = new Client({ name: asked.client, version: "1" }, options);
for (const [method, answer] of Object.entries(asked.answers ?? {})) client.setRequestHandler(method, () => answer);
await client.connect(transport);
const outcomes = [];
const revision = client.getNegotiatedProtocolVersion();
for (const step of asked.steps) {
  if (step.handshake_only && client.getProtocolEra() === "modern") {
    outcomes.push({ absent: revision });
    continue;
  }
  try {
    outcomes.push(await carryOut(client, step));
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    outcomes.push({ error: { code: error.code, message: error.message } });
  }
}
await transport.terminateSession?.();
await client.close();
process.stdout.write(JSON.stringify({ revision, outcomes }));
