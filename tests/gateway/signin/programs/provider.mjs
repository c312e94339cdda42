// A strict OpenID provider (oidc-provider) with one client and accounts by any name; prints its issuer when it listens.
// Knows no expectation. Arguments: the folder of the library, the redirect URI of the one client.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { createServer } from "node:http";
import path from "node:path";

const [, , folder, redirect, audience] = process.argv;
const installed = createRequire(path.join(folder, "package.json"));
const { default: Provider } = await import(pathToFileURL(installed.resolve("oidc-provider")));
const listener = createServer();
await new Promise((done) => listener.listen(0, "127.0.0.1", done));
const issuer = `http://127.0.0.1:${listener.address().port}`;
const resource = {
  enabled: true,
  defaultResource: () => audience,
  useGrantedResource: () => true,
  getResourceServerInfo: () => ({ scope: "mcp", audience, accessTokenFormat: "jwt", jwt: { sign: { alg: "ES256" } } }),
};
const { generateKeyPairSync } = await import("node:crypto");
const jwk = (kind, options, use) => ({ ...generateKeyPairSync(kind, options).privateKey.export({ format: "jwk" }), ...use });
const provider = new Provider(issuer, {
  jwks: { keys: [
    jwk("rsa", { modulusLength: 2048 }, { alg: "RS256", use: "sig", kid: "r" }),
    jwk("ec", { namedCurve: "P-256" }, { alg: "ES256", use: "sig", kid: "e" }),
  ] },
  clients: [
    { client_id: "lockgate", client_secret: "the-secret-of-lockgate", redirect_uris: [redirect] },
    { client_id: "machine", client_secret: "the-secret-of-machine", redirect_uris: [], response_types: [],
      grant_types: ["client_credentials"] },
  ],
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, clientCredentials: { enabled: true }, resourceIndicators: resource },
  claims: { openid: ["sub", "groups"] },
  conformIdTokenClaims: false,
  cookies: { keys: ["a test's own key"] },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, groups: ["g1"] }) }),
});
listener.on("request", provider.callback());
console.log(JSON.stringify({ issuer }));
