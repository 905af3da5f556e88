// A person's sign-in: OAuth's authorization code flow with PKCE, without a secret.
// https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow
//
// The tokens are in sessionStorage, so until the tab is closed. The access token is renewed before it expires, by a
// refresh token; a page's lasts 24 hours, and then the browser has to visit the authority again:
// https://learn.microsoft.com/entra/identity-platform/refresh-tokens

import { ConnectionLost } from "./api.js";

const TOKENS = "sign-in-tokens"; // {issuer, name, access, refresh, expires}; `expires` in ms since 1970
const PENDING = "sign-in-pending"; // {state, verifier} while the authority's page is open, then {verifier, code, address}
const RENEW_MS = 300_000; // before the token expires

export class SignIn {
  problem = ""; // why the last sign-in failed or ended
  #renewing = null;

  // `people` of api/sign-in
  constructor({ authority, tenant_id, client_id, scope }) {
    this.base = `${authority}/${tenant_id}/oauth2/v2.0`;
    this.client = client_id;
    this.scope = `openid profile offline_access ${scope}`;
    if (this.#tokens?.issuer !== this.#issuer) this.forget(); // of another deployment
  }

  // Of the signed-in person; null if there is none.
  get name() {
    return this.#tokens?.name ?? null;
  }

  // Leaves the page for the authority's, which comes back to this address.
  async start() {
    const [state, verifier] = [random(), random()];
    sessionStorage.setItem(PENDING, JSON.stringify({ state, verifier }));
    const query = new URLSearchParams({
      client_id: this.client,
      response_type: "code",
      response_mode: "fragment", // which is not sent to the server, so it is in no log
      redirect_uri: here(),
      scope: this.scope,
      state,
      code_challenge: base64url(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier))),
      code_challenge_method: "S256",
    });
    leave(`${this.base}/authorize?${query}`);
    return new Promise(() => {}); // until the page is left
  }

  // Takes up the authority's answer, if the page was opened with one, and exchanges its code for tokens. A code is used
  // once, unless its request gets no answer: then the next call repeats it, also after a reload. Throws ConnectionLost.
  async complete() {
    const answer = new URLSearchParams(location.hash.slice(1));
    if (answer.has("state") && (answer.has("code") || answer.has("error"))) this.#takeUp(answer);
    const { verifier, code, address } = pending();
    if (!code) return;
    const grant = { grant_type: "authorization_code", code, redirect_uri: address };
    await this.#request({ ...grant, code_verifier: verifier });
    sessionStorage.removeItem(PENDING);
  }

  // Stores the code, or the problem.
  #takeUp(answer) {
    history.replaceState(null, "", location.pathname);
    const { state, verifier } = pending();
    sessionStorage.removeItem(PENDING);
    if (state !== answer.get("state")) {
      this.problem = "This sign-in was not started in this tab.";
    } else if (answer.has("error")) {
      this.problem = reason(Object.fromEntries(answer));
    } else {
      sessionStorage.setItem(PENDING, JSON.stringify({ verifier, code: answer.get("code"), address: here() }));
    }
  }

  // The access token, renewed if it expires soon; null without a sign-in, or if it has ended. Throws ConnectionLost.
  async token() {
    const tokens = this.#tokens;
    if (!tokens) return null;
    const left = tokens.expires - Date.now();
    if (left > RENEW_MS) return tokens.access;
    const grant = { grant_type: "refresh_token", refresh_token: tokens.refresh };
    this.#renewing ??= this.#request(grant).finally(() => (this.#renewing = null));
    try {
      await this.#renewing;
    } catch (error) {
      if (!(error instanceof ConnectionLost && left > 0)) throw error;
    }
    return this.#tokens?.access ?? null;
  }

  forget() {
    sessionStorage.removeItem(TOKENS);
  }

  // Signs out at the authority too: otherwise the next person at this browser is signed in as the last one.
  signOut() {
    sessionStorage.clear();
    leave(`${this.base}/logout?${new URLSearchParams({ post_logout_redirect_uri: here() })}`);
  }

  // Stores the tokens, or the problem. Throws ConnectionLost.
  async #request(grant) {
    const body = new URLSearchParams({ client_id: this.client, scope: this.scope, ...grant });
    let response, answer;
    try {
      response = await fetch(`${this.base}/token`, { method: "POST", body, cache: "no-store" });
      answer = await response.json();
    } catch {
      throw new ConnectionLost("The sign-in service can't be reached. Check your connection, then try again.");
    }
    if (![200, 400, 401].includes(response.status)) {
      throw new ConnectionLost(`The sign-in service returned HTTP ${response.status}. Try again later.`);
    }
    if (!response.ok) {
      this.forget();
      this.problem = grant.refresh_token ? "Your sign-in has expired." : reason(answer);
      return;
    }
    const tokens = {
      issuer: this.#issuer,
      name: claims(answer.id_token).name ?? "Signed in",
      access: answer.access_token,
      refresh: answer.refresh_token,
      expires: Date.now() + answer.expires_in * 1000,
    };
    sessionStorage.setItem(TOKENS, JSON.stringify(tokens));
    this.problem = "";
  }

  get #issuer() {
    return `${this.base} ${this.client}`;
  }

  get #tokens() {
    return JSON.parse(sessionStorage.getItem(TOKENS));
  }
}

const pending = () => JSON.parse(sessionStorage.getItem(PENDING)) ?? {};

// An OAuth error in words. Entra's descriptions end in IDs for its support.
function reason({ error, error_subcode, error_description }) {
  const isCancelled = error_subcode === "cancel" || (error === "access_denied" && !error_description);
  if (isCancelled) return "Signing in was cancelled.";
  const [text] = (error_description ?? error).split(/\s*Trace ID:/);
  return `Signing in failed: ${text}`;
}

// The Back button shows the page as it was left, unless it is loaded again.
function leave(url) {
  addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
  location.assign(url);
}

// The address that is registered as this page's redirect address.
const here = () => location.origin + location.pathname;

const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));

const base64url = (bytes) =>
  btoa(String.fromCharCode(...new Uint8Array(bytes)))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");

// Of a token for this page, which came from its issuer over TLS.
function claims(token) {
  const bytes = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (character) => character.charCodeAt(0))));
}
