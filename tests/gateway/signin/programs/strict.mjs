// A strict OAuth client (oauth4webapi) that walks every grant against an authorization server and prints what it got.
// Knows no expectation beyond the library's own. Arguments: the folder of the library, issuer, resource, machine id, key.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { createInterface } from "node:readline";
import path from "node:path";

const [, , folder, issuer, resource, machine, key] = process.argv;
const installed = createRequire(path.join(folder, "package.json"));
const oauth = await import(pathToFileURL(installed.resolve("oauth4webapi")));
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (what) => console.log(JSON.stringify(what));
const hear = async () => (await lines.next()).value;
const plain = { [oauth.allowInsecureRequests]: true };
const redirect = "http://127.0.0.1:7777/callback";

const found = await oauth.resourceDiscoveryRequest(new URL(resource), plain);
const server = await oauth.processResourceDiscoveryResponse(new URL(resource), found);
if (server.authorization_servers[0] !== issuer) throw new Error("another authorization server");
const url = new URL(issuer);
const as = await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, { algorithm: "oauth2", ...plain }));

const metadata = { redirect_uris: [redirect], client_name: "strict", token_endpoint_auth_method: "client_secret_basic" };
const registered = await oauth.dynamicClientRegistrationRequest(as, metadata, plain);
const client = await oauth.processDynamicClientRegistrationResponse(registered);
const proof = oauth.ClientSecretBasic(client.client_secret);

const verifier = oauth.generateRandomCodeVerifier();
const state = oauth.generateRandomState();
const ask = new URL(as.authorization_endpoint);
const query = { client_id: client.client_id, redirect_uri: redirect, response_type: "code", scope: "mcp", resource, state };
query.code_challenge = await oauth.calculatePKCECodeChallenge(verifier);
query.code_challenge_method = "S256";
for (const [name, value] of Object.entries(query)) ask.searchParams.set(name, value);
say({ open: ask.href });
const back = oauth.validateAuthResponse(as, client, new URL(await hear()), state);
const more = { ...plain, additionalParameters: { resource } };
const answer = await oauth.authorizationCodeGrantRequest(as, client, proof, back, redirect, verifier, more);
const tokens = await oauth.processAuthorizationCodeResponse(as, client, answer);

const request = new Request(resource, { headers: { authorization: `Bearer ${tokens.access_token}` } });
const claims = await oauth.validateJwtAccessToken(as, request, resource, plain);
const again = await oauth.refreshTokenGrantRequest(as, client, proof, tokens.refresh_token, more);
const fresh = await oauth.processRefreshTokenResponse(as, client, again);
const asked = await oauth.introspectionRequest(as, client, proof, fresh.access_token, plain);
const before = await oauth.processIntrospectionResponse(as, client, asked);
await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, proof, fresh.refresh_token, plain));
const askedAgain = await oauth.introspectionRequest(as, client, proof, fresh.access_token, plain);
const after = await oauth.processIntrospectionResponse(as, client, askedAgain);

const robot = { client_id: machine };
const secret = oauth.ClientSecretPost(key);
const own = await oauth.clientCredentialsGrantRequest(as, robot, secret, { scope: "mcp", resource }, plain);
const machineTokens = await oauth.processClientCredentialsResponse(as, robot, own);
const device = await oauth.processDeviceAuthorizationResponse(
  as, client, await oauth.deviceAuthorizationRequest(as, client, proof, { scope: "mcp", resource }, plain),
);
say({
  claims, active: [before.active, after.active], rotated: fresh.refresh_token !== tokens.refresh_token,
  machine: machineTokens.token_type, device: device.verification_uri,
});
process.exit(0);
