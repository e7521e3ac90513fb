// The page: opens the stream, keeps ten minutes of it, and tells what is wrong in words.

const POINTS = 600;
const NAMES = ["time_ms", "in", "out", "dead_letter", "dropped", "lag", "in_flight_bytes", "rss_bytes", "mean_batch", "p50_us", "p99_us"];
const TONES = { ready: "good", waiting: "warn", draining: "warn", "warming up": "warn", "not ready": "warn", stalled: "bad", stuck: "bad" };
const THEMES = ["auto", "light", "dark"];

const tiles = new Tiles(byId("tiles"));
const latency = new Latency();
const partitions = new Partitions();
const all = [new Throughput(), latency, partitions, new Replicas(), new Models(), new Batches(), new Errors(), new Memory(), new Letters(), new Samples(), new Drift()];
const [throughput, , , replicas, models, batches, errors, memory, letters, samplesPanel, drift] = all;
for (const each of [throughput, latency, latency.second, partitions, batches, errors, memory, letters, { element: h("div", { class: "column" }, replicas.element, models.element, drift.element) }, samplesPanel]) {
  byId("panels").append(each.element);
}

let state = null;
let samples = [];
let lostAt = null;
let lostWhy = null;
const history_ = Object.fromEntries(NAMES.map((name) => [name, []]));
history_.stages = [];

function keep(point) {
  const last = history_.time_ms[history_.time_ms.length - 1];
  if (last !== undefined && point[0] <= last) return;
  NAMES.forEach((name, index) => {
    history_[name].push(point[index]);
    if (history_[name].length > POINTS) history_[name].shift();
  });
}

function onEvent(name, data) {
  lostAt = null;
  if (name === "state") {
    for (const each of NAMES) history_[each].length = 0;
    history_.stages = data.history.stages;
    data.history.points.forEach(keep);
    delete data.history;
    samples = data.samples;
  } else if (name === "second") {
    keep(data.point);
    samples = [...(data.samples || []), ...samples.filter((each) => !(data.samples || []).some((other) => other.number === each.number))].slice(0, data.about.samples);
  } else return;
  state = data;
  byId("login").hidden = true;
  byId("content").hidden = false;
  document.body.classList.add("live");
  document.body.classList.remove("stale");
  show();
}

function show() {
  if (!state || document.hidden) return;
  const names = Object.keys(state.about.inputs);
  const title = names.length === 1 ? names[0] : plural(names.length, "pipeline");
  say(byId("name"), title);
  document.body.dataset.timeMs = state.time_ms;
  say(byId("where"), `${state.worker.id} · group ${state.worker.group} · up ${duration(state.uptime_s)}`);
  document.title = `${title} · streaminfer`;
  say(byId("health"), state.health.state);
  tone(byId("health"), TONES[state.health.state] || "quiet");
  tone(byId("link"), "good");
  say(byId("link-text"), `live, ${clock(state.time_ms)}`);
  say(byId("foot"), `streaminfer ${state.worker.version} on ${state.worker.host}, process ${state.worker.pid}`);
  banners(warnings());
  const taken = sum(pipelines(state.since_start).map(([, each]) => each.records.in));
  byId("empty").hidden = taken > 0 || !state.health.ready;
  if (!taken) empty();
  tiles.update(state, history_);
  for (const each of all) each.update(state, history_, samples);
}

function warnings() {
  const { health } = state, found = [];
  const away = !health.broker && health.state !== "warming up";
  if (health.state === "stuck") found.push(["bad", "Stuck", `${health.reason || "the loop does not turn"}; its last turn was ${duration(health.turned_s_ago)} ago`]);
  else if (health.draining) found.push(["warn", "Draining", "it finishes what it has taken, then ends"]);
  else if (health.state === "warming up") found.push(["warn", "Warming up", "models are being loaded; it takes no records yet"]);
  else if (!health.ready && !away) found.push(["warn", "Not ready", health.reason || "it takes no records"]);
  if (away) found.push(["bad", "No broker", `none of ${state.about.brokers} can be reached; ${health.waits || "it is tried again"}. Nothing is lost: records wait in Kafka`]);
  else if (health.waits) found.push([health.progressing ? "warn" : "bad", health.progressing ? "Waiting" : "No progress", health.waits]);
  if (state.memory.rss_bound_bytes && state.memory.rss_bytes > state.memory.rss_bound_bytes) found.push(["bad", "Memory", "the process takes more than its bound"]);
  return found;
}

function banners(found) {
  const mark = JSON.stringify(found);
  if (banners.mark === mark) return;
  banners.mark = mark;
  byId("banners").replaceChildren(...found.map(([kind, title, text]) => h("div", { class: "banner", "data-tone": kind }, h("strong", {}, title), h("span", {}, text))));
}

function empty() {
  const topics = [...new Set(Object.values(state.about.inputs).flat())];
  say(byId("empty-topics"), topics.join(", "));
  say(byId("empty-command"), `streaminfer produce SOURCE --topic ${topics[0]} --bootstrap ${state.about.brokers}`);
}

function onLost(why) {
  lostAt = lostAt ?? Date.now();
  lostWhy = why;
  lost();
}

function lost() {
  if (lostAt === null) return;
  tone(byId("link"), "bad");
  say(byId("link-text"), "not connected");
  tone(byId("health"), "quiet");
  say(byId("health"), "unknown");
  document.body.classList.remove("live");
  document.body.classList.add("stale");
  const when = state ? ` The numbers below are those of ${clock(state.time_ms)}.` : "";
  banners([["bad", "Connection lost", `${lostWhy}. It is tried again every few seconds.${when}`]]);
}

function askForToken(wrong) {
  byId("login").hidden = false;
  byId("content").hidden = true;
  say(byId("health"), "token needed");
  tone(byId("health"), "quiet");
  say(byId("link-text"), "not connected");
  tone(byId("link"), "quiet");
  banners([]);
  say(byId("login-error"), wrong ? "That is not this worker's token." : "");
  byId("token").value = "";
  byId("token").focus();
  return new Promise((done) => {
    byId("login-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, byId("token").value.trim());
      done();
    };
  });
}

function theme(name) {
  if (name === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = name;
  say(byId("theme"), { auto: "Colours: system", light: "Colours: light", dark: "Colours: dark" }[name]);
  try { localStorage.setItem("streaminfer.theme", name); } catch { /* private windows may have no storage */ }
}

let chosen = "auto";
try { chosen = localStorage.getItem("streaminfer.theme") || "auto"; } catch { /* as above */ }
theme(THEMES.includes(chosen) ? chosen : "auto");
byId("theme").addEventListener("click", () => {
  chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  theme(chosen);
});
byId("empty-copy").hidden = !navigator.clipboard;
byId("empty-copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(byId("empty-command").textContent);
  say(byId("empty-copy"), "Copied");
});
// A page with a token cannot follow a link to the same numbers: the link would not carry it.
async function openAs(event, path) {
  if (!sessionStorage.getItem(TOKEN)) return;
  event.preventDefault();
  const answer = await fetch(beside(path), { headers: headers() });
  const address = URL.createObjectURL(new Blob([await answer.text()], { type: "text/plain" }));
  window.open(address);
}
for (const path of ["state", "metrics"]) {
  byId("as-" + path).setAttribute("href", beside(path));
  byId("as-" + path).addEventListener("click", (event) => openAs(event, path));
}
document.addEventListener("visibilitychange", () => { show(); lost(); });
new Stream({ event: onEvent, lost: onLost, token: askForToken });
