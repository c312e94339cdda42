// The TypeScript SDK's own way to sign in: connect, be sent to a browser, come back, list the tools.
// Knows no expectation. Arguments: the folder of the SDK, the address of the endpoint.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { createInterface } from "node:readline";
import path from "node:path";

const [, , folder, endpoint] = process.argv;
const installed = createRequire(path.join(folder, "package.json"));
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await import(
  pathToFileURL(installed.resolve("@modelcontextprotocol/client"))
);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (what) => console.log(JSON.stringify(what));
const redirect = "http://127.0.0.1:7777/callback";
const kept = {};
const authProvider = {
  get redirectUrl() { return redirect; },
  get clientMetadata() { return { client_name: "typescript", redirect_uris: [redirect], token_endpoint_auth_method: "none" }; },
  state: () => "a-state",
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client; },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens; },
  redirectToAuthorization: (url) => say({ open: url.href }),
  saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  codeVerifier: () => kept.verifier,
  saveDiscoveryState: (state) => { kept.discovery = state; },
  discoveryState: () => kept.discovery,
};
const connect = async (transport) => {
  const client = new Client({ name: "typescript", version: "1" });
  await client.connect(transport);
  return client;
};
const first = new StreamableHTTPClientTransport(new URL(endpoint), { authProvider });
try {
  await connect(first);
  throw new Error("nobody was asked to sign in");
} catch (error) {
  if (!(error instanceof UnauthorizedError)) throw error;
}
const back = new URL((await lines.next()).value);
await first.finishAuth(back.searchParams);
const client = await connect(new StreamableHTTPClientTransport(new URL(endpoint), { authProvider }));
const { tools } = await client.listTools();
say({ tools: tools.map((tool) => tool.name) });
process.exit(0);
