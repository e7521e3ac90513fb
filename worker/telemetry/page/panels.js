// The panels: each has an element, and update(state, history) shows what there is now.

const WAITING = new Set(["broker", "queue", "wait", "hold"]);
const STAGES = ["broker", "queue", "fetch", "decode", "wait", "infer", "encode", "hold", "publish"];
const MEANING = {
  broker: "in Kafka, before it was taken", queue: "before decode starts", fetch: "getting what it refers to", decode: "decode and preprocess",
  wait: "for its batch and a free slot", infer: "the model", encode: "postprocess and result", hold: "for its turn in the order", publish: "until Kafka has acknowledged it",
};

function panel(title, width, ...children) {
  const note = h("span", { class: "muted" });
  const id = "p-" + title.toLowerCase().replace(/[^a-z]+/g, "-");
  const head = h("header", {}, h("h2", { id }, title), note);
  const element = h("section", { class: "panel", "data-w": width, "aria-labelledby": id }, head, ...children);
  return { element, head, note };
}

function legend(series) {
  return h("ul", { class: "legend" }, ...series.map((each) => h("li", {}, key(each.color), each.label)));
}

const sum = (values) => values.reduce((total, each) => total + each, 0);
const pipelines = (part) => Object.entries(part.pipelines);

function latest(history, name) {
  const found = history[name];
  return found.length ? found[found.length - 1] : null;
}

function mean(history, name, seconds) {
  const found = history[name].slice(-seconds).filter((each) => each !== null);
  return found.length ? sum(found) / found.length : null;
}

class Tiles {
  constructor(host) {
    this.tiles = {};
    for (const [name, title] of [["out", "Records answered"], ["p99", "Latency, 99 %"], ["lag", "Lag"], ["dead", "Dead letters"], ["memory", "Memory"]]) {
      const big = h("p", { class: "big" }), small = h("p");
      const element = h("div", { class: "tile" }, h("h2", {}, title), big, small);
      this.tiles[name] = { element, big, small };
      host.append(element);
    }
  }

  set(name, value, unit, small, kind = "plain") {
    const tile = this.tiles[name];
    const shown = value + "\u0000" + unit;
    if (tile.shown !== shown) { tile.shown = shown; tile.big.replaceChildren(value, h("small", {}, unit)); }
    say(tile.small, small);
    tone(tile.element, kind);
  }

  update(state, history) {
    const minute = state.last_minute, whole = state.since_start;
    const out = sum(pipelines(whole).map(([, each]) => each.records.out));
    this.set("out", rate(mean(history, "out", 5)), "/s", `${count(out)} since start`);
    const total = minute.latency_ms.total;
    const [value, unit] = total && total.count ? millis(total.p99).split(" ") : [DASH, ""];
    this.set("p99", value, unit, total && total.count ? `half within ${millis(total.p50)}, last minute` : "no record in the last minute");
    const all = Object.values(partitionsOf(state));
    const lags = all.map((each) => each.lag).filter((each) => each !== null);
    const stuck = all.some((each) => each.moving === false);
    const slowest = Math.max(0, ...all.map((each) => each.seconds_to_drain || 0));
    const lag = lags.length ? sum(lags) : null;
    const left = !state.health.broker ? "as last known, without a broker" : lag === null ? "no partition here" : lag === 0 ? "nothing waits" : stuck ? "a partition does not move" : `${duration(slowest)} to drain`;
    this.set("lag", count(lag), lag === 1 ? "record" : "records", left, stuck && state.health.broker ? "warn" : "plain");
    const dead = sum(pipelines(whole).map(([, each]) => each.records.dead_letter));
    const recent = sum(pipelines(minute).map(([, each]) => each.records.dead_letter));
    this.set("dead", count(recent), "", `in the last minute, ${count(dead)} since start`, recent ? "bad" : "plain");
    const memory = state.memory;
    const [size, sizeUnit] = bytes(memory.rss_bytes).split(" ");
    this.set("memory", size, sizeUnit, memory.rss_bound_bytes ? `of at most ${bytes(memory.rss_bound_bytes)}` : "models are being loaded");
  }
}

// The partitions of the whole group where the metrics topic tells of them; this replica's own are newer.
function partitionsOf(state) {
  const group = state.group && !state.group.error ? state.group.partitions : {};
  return { ...group, ...Object.fromEntries(Object.entries(state.partitions).map(([name, each]) => [name, { ...each, worker: state.worker.id }])) };
}

class Throughput {
  constructor() {
    this.series = [{ name: "in", label: "received", color: "in" }, { name: "out", label: "answered", color: "out" }, { name: "dead_letter", label: "dead letters", color: "dead" }];
    this.chart = new Chart("Records per second", { series: this.series, format: rate });
    this.minutes = new Minutes(this.chart);
    Object.assign(this, panel("Records per second", "half", legend(this.series), this.chart.element, this.minutes.element));
  }

  update(state, history) {
    this.chart.set(history.time_ms, this.series.map((each) => history[each.name]));
    this.minutes.draw();
    const minute = state.last_minute;
    say(this.note, `${rate(sum(pipelines(minute).map(([, each]) => each.records.out)) / (minute.interval_s || 1))}/s over the last minute`);
  }
}

class Latency {
  constructor() {
    this.which = "p50_us";
    this.series = STAGES.map((name) => ({ name, label: name, color: name }));
    this.chart = new Chart("Latency by stage", { series: this.series, stacked: true, format: millis, least: 0.02 });
    this.minutes = new Minutes(this.chart);
    this.table = table("Latency by stage, last minute", [["Stage"], ["What the record waits for", "roomy"], ["50 %", "n"], ["99 %", "n"], ["longest", "n"]]);
    const choose = (name, label) => h("button", { type: "button", "aria-pressed": String(name === this.which), onclick: () => this.choose(name) }, label);
    this.buttons = { p50_us: choose("p50_us", "half of the records"), p99_us: choose("p99_us", "99 %") };
    const toggle = h("div", { class: "toggle", role: "group", "aria-label": "Which records" }, ...Object.values(this.buttons));
    Object.assign(this, panel("Latency by stage", "half", legend(this.series), this.chart.element, this.minutes.element));
    this.head.append(toggle);
    this.bar = h("div", { class: "meter tall", "aria-hidden": "true" });
    Object.assign(this, { second: panel("Where the time goes", "half", this.bar, this.table.element) });
    this.bar.style.marginBottom = "0.6rem";
    say(this.second.note, "last minute · grey stages wait, coloured ones work");
  }

  choose(name) {
    this.which = name;
    for (const [each, button] of Object.entries(this.buttons)) button.setAttribute("aria-pressed", String(each === name));
    if (this.last) this.update(...this.last);
  }

  update(state, history) {
    this.last = [state, history];
    const used = STAGES.map((name) => history.stages.indexOf(name));
    this.chart.set(history.time_ms, used.map((place) => history[this.which].map((each) => (each ? each[place] / 1000 : null))));
    this.minutes.draw();
    const latency = state.last_minute.latency_ms;
    const there = STAGES.filter((name) => latency[name] && latency[name].count);
    fill(this.table.body, [...there, ...(there.length ? ["total"] : [])].map((name) => [
      { node: name === "total" ? h("b", {}, "broker to encode") : h("span", {}, key(name), name), kind: "nowrap" },
      { text: name === "total" ? "latency_ms.total of the result" : MEANING[name], kind: "muted roomy" },
      { text: millis(latency[name].p50), kind: "n" }, { text: millis(latency[name].p99), kind: "n" }, { text: millis(latency[name].max), kind: "n" },
    ]));
    this.bar.replaceChildren(...there.map((name) => h("i", { style: { background: colour(name), flex: String(latency[name].p50 || 0.0001) } })));
    this.second.element.classList.toggle("none-yet", !there.length);
    if (!there.length) fill(this.table.body, [[{ text: "no record in the last minute", kind: "muted" }]]);
  }
}

class Partitions {
  constructor() {
    this.series = [{ name: "lag", label: "lag of this replica", color: "out" }];
    this.chart = new Chart("Lag", { series: this.series, format: count, least: 2, step: 1 });
    this.minutes = new Minutes(this.chart);
    this.strip = h("div", { class: "strip", "aria-hidden": "true" });
    this.table = table("Lag by partition", [["Partition"], ["Lag", "n"], ["Compared", "bar"], ["To drain", "n"], ["Committed", "end roomy"], ["End", "end roomy"]]);
    this.chart.element.classList.add("low");
    this.all = false;
    this.more = h("button", { type: "button", class: "ghost", hidden: true, onclick: () => { this.all = !this.all; this.update(...this.last); } });
    Object.assign(this, panel("Lag and time to drain", "half", this.chart.element, this.minutes.element, this.strip, this.table.element, this.more));
  }

  update(state, history) {
    this.last = [state, history];
    this.chart.set(history.time_ms, [history.lag]);
    this.minutes.draw();
    const found = Object.entries(partitionsOf(state));
    const most = Math.max(1, ...found.map(([, each]) => each.lag || 0));
    found.sort(([, a], [, b]) => (b.lag || 0) - (a.lag || 0));
    say(this.note, found.length ? `${plural(found.length, "partition")}${state.group && !state.group.error ? " of the group" : " of this replica"}` : "");
    this.strip.hidden = found.length < 13;
    if (!this.strip.hidden) {
      this.strip.replaceChildren(...found.map(([name, each]) => h("i", { title: `${name}: ${count(each.lag)}`, style: { background: each.lag ? `color-mix(in srgb, var(--accent) ${Math.round(15 + 85 * each.lag / most)}%, var(--sunken))` : null } })));
    }
    const shown = this.all ? found : found.slice(0, 12);
    this.more.hidden = found.length <= 12;
    say(this.more, this.all ? "Show the 12 with the most lag" : `Show all ${found.length}`);
    fill(this.table.body, shown.map(([name, each]) => [
      name, { text: count(each.lag), kind: "n" },
      { node: h("div", { class: "meter" }, h("i", { style: { width: `${100 * (each.lag || 0) / most}%` }, "data-tone": each.moving === false ? "warn" : null })), kind: "bar" },
      { text: drain(each), kind: "n" }, { text: count(each.committed ?? each.position), kind: "end roomy" }, { text: count(each.end), kind: "end roomy" },
    ]));
    if (!found.length) fill(this.table.body, [[{ text: state.health.ready ? "no partition is assigned: there are more replicas than partitions" : "no partition is assigned yet", kind: "muted" }]]);
  }
}

class Batches {
  constructor() {
    this.bars = h("div", { class: "bars", role: "img" });
    this.none = h("p", { class: "none" }, "no batch in the last minute");
    Object.assign(this, panel("Batch sizes", "third", this.bars, this.none));
  }

  update(state) {
    const sizes = {};
    for (const [, each] of pipelines(state.last_minute)) for (const [size, batches] of Object.entries(each.batch_sizes)) sizes[size] = (sizes[size] || 0) + batches;
    const names = Object.keys(sizes).filter((each) => each !== "more").sort((a, b) => a - b).concat("more" in sizes ? ["more"] : []);
    const most = Math.max(1, ...Object.values(sizes)), total = sum(Object.values(sizes));
    this.none.hidden = total > 0;
    this.bars.hidden = total === 0;
    const label = (name) => (name === "more" ? "> 4096" : +name <= 2 ? name : `${+name / 2 + 1}–${name}`);
    this.bars.replaceChildren(...names.map((name) => h("div", { title: `${plural(sizes[name], "batch").replace(/batchs$/, "batches")} of ${label(name)} items` },
      `${Math.round(100 * sizes[name] / total)} %`, h("i", { style: { height: `${85 * sizes[name] / most}%` } }), label(name))));
    this.bars.setAttribute("aria-label", "Items per batch: " + names.map((name) => `${label(name)}: ${sizes[name]}`).join(", "));
    const items = sum(pipelines(state.last_minute).map(([, each]) => each.items)), batches = sum(pipelines(state.last_minute).map(([, each]) => each.batches));
    say(this.note, batches ? `mean ${trim(items / batches)} items, last minute` : "");
  }
}

class Errors {
  constructor() {
    this.table = table("Dead letters by reason", [["Reason"], ["Stage"], ["Last minute", "n"], ["Since start", "n"]]);
    this.none = h("p", { class: "none" }, "Every record so far was answered.");
    Object.assign(this, panel("Errors by reason", "third", this.table.element, this.none));
  }

  update(state) {
    const found = new Map();
    for (const [part, place] of [[state.since_start, 1], [state.last_minute, 0]]) {
      for (const [, each] of pipelines(part)) {
        for (const failure of each.failures) {
          const name = failure.reason + " " + failure.stage;
          if (!found.has(name)) found.set(name, [failure.reason, failure.stage, 0, 0]);
          found.get(name)[2 + place] += failure.records;
        }
      }
    }
    const rows = [...found.values()].sort((a, b) => b[3] - a[3]);
    this.none.hidden = rows.length > 0;
    this.table.element.hidden = rows.length === 0;
    fill(this.table.body, rows.map(([reason, stage, minute, whole]) => [
      { node: h("span", { class: "tag" }, reason), kind: "nowrap" }, stage, { text: count(minute), kind: "n" }, { text: count(whole), kind: "n" },
    ]));
    const taken = sum(pipelines(state.last_minute).map(([, each]) => each.records.out + each.records.dead_letter));
    const bad = sum(pipelines(state.last_minute).map(([, each]) => each.records.dead_letter));
    say(this.note, taken ? `${trim(100 * bad / taken) || 0} % of the last minute` : "");
  }
}

class Memory {
  constructor() {
    const bar = (label) => {
      const value = h("span"), fill = h("i");
      const meter = h("div", { class: "meter tall", role: "meter", "aria-label": label, "aria-valuemin": "0" }, fill);
      return { element: h("div", {}, h("div", { class: "row" }, h("span", {}, label), value), meter), value, fill, meter };
    };
    this.rss = bar("Process, of its bound");
    this.budget = bar("Records in flight, of limits.in_flight_bytes");
    this.loop = h("div", {}, h("div", { class: "row" }, h("span", {}, "Processor"), this.cpu = h("span")));
    this.chart = new Chart("Memory", { series: [{ name: "rss_bytes", label: "process", color: "out" }, { name: "in_flight_bytes", label: "records in flight", color: "queue" }], format: bytes, least: 1048576, binary: true });
    this.chart.element.classList.add("low");
    this.minutes = new Minutes(this.chart);
    Object.assign(this, panel("Memory and processor", "third", h("div", { class: "facts" }, this.rss.element, this.budget.element, this.loop), this.chart.element, this.minutes.element));
  }

  set(bar, value, most) {
    const share = most ? value / most : 0;
    say(bar.value, most ? `${bytes(value)} of ${bytes(most)}` : bytes(value));
    bar.fill.style.width = `${Math.min(100, 100 * share)}%`;
    tone(bar.fill, share > 1 ? "bad" : share > 0.9 ? "warn" : "plain");
    bar.meter.setAttribute("aria-valuemax", most || value);
    bar.meter.setAttribute("aria-valuenow", value);
  }

  update(state, history) {
    this.chart.set(history.time_ms, [history.rss_bytes, history.in_flight_bytes]);
    this.minutes.draw();
    this.set(this.rss, state.memory.rss_bytes, state.memory.rss_bound_bytes);
    this.set(this.budget, state.memory.in_flight_bytes, state.memory.in_flight_limit_bytes);
    const idle = state.loop_ratio.wait + state.loop_ratio.poll;
    say(this.cpu, state.cpu === null ? DASH : `${trim(state.cpu)} cores; the loop is ${Math.round(100 * Math.max(0, 1 - idle))} % busy`);
  }
}

class Models {
  constructor() {
    this.table = table("Pipelines and models", [["Pipeline"], ["Model"], ["Runs on"], ["Answered", "n"], ["50 %", "n"], ["99 %", "n"], ["Batch", "n"], ["Dead letters", "n"], ["Versions"]]);
    Object.assign(this, panel("Pipelines and models", "wide", this.table.element));
    say(this.note, "last minute");
  }

  update(state) {
    const minute = state.last_minute;
    fill(this.table.body, pipelines(minute).map(([name, each]) => {
      const model = state.models[name], total = each.latency_ms.total;
      const some = total && total.count;
      return [
        name, model ? `${model.name}@${model.version}` : "no pipeline takes these", model ? model.provider : DASH,
        { text: rate(each.records.out / (minute.interval_s || 1)) + "/s", kind: "n" },
        { text: some ? millis(total.p50) : DASH, kind: "n" }, { text: some ? millis(total.p99) : DASH, kind: "n" },
        { text: each.batches ? trim(each.mean_batch) : DASH, kind: "n" }, { text: count(each.records.dead_letter), kind: "n" },
        { node: model ? this.versions(model, each, minute.interval_s) : h("span", {}, DASH) },
      ];
    }));
  }

  versions(model, minute, seconds) {
    const parts = [];
    for (const [version, its] of Object.entries(minute.versions || {})) {
      parts.push(h("span", { class: "tag quiet" }, `${version}: ${rate(its.records.out / (seconds || 1))}/s`), " ");
    }
    const rollout = model.rollout;
    if (rollout && rollout.state) {
      const kind = { running: "warn", promoted: "good", rolled_back: "", aborted: "quiet" }[rollout.state] ?? "quiet";
      const share = rollout.share !== undefined && rollout.share !== null ? ` ${trim(100 * rollout.share)} %` : "";
      parts.push(h("span", { class: "tag " + kind, title: rollout.reason || null }, `${rollout.mode || "rollout"} ${rollout.candidate || ""}${share}: ${rollout.state.replace("_", " ")}`), " ");
    }
    const ended = Object.entries(model.rollouts || {}).filter(([state, n]) => state !== "running" && n);
    const kinds = { promoted: "good", rolled_back: "" };
    for (const [state, n] of ended) parts.push(h("span", { class: "tag " + (kinds[state] ?? "quiet") }, `${n} ${state.replace("_", " ")}`), " ");
    const refused = Object.entries(model.refused);
    if (model.swaps) parts.push(`${plural(model.swaps, "swap")} `);
    if (refused.length) parts.push(h("span", { class: "tag warn" }, "refused: " + refused.map(([why, n]) => `${n} ${why}`).join(", ")));
    return h("span", {}, ...(parts.length ? parts : ["no change"]));
  }
}

const DRIFTED = 0.2, DRIFT_ROWS = 12;

class Drift {
  constructor() {
    this.table = table("Stability index by feature", [["Pipeline"], ["Feature"], ["Index", "n"], ["Of 1", "bar"]]);
    Object.assign(this, panel("Unlike the profile", "wide", this.table.element));
    this.element.hidden = true;
  }

  update(state) {
    const found = pipelines(state.last_minute).flatMap(([name, each]) => Object.entries(each.drift || {}).map(([feature, index]) => [name, feature, index]));
    this.element.hidden = found.length === 0;
    found.sort((a, b) => b[2] - a[2]);
    const drifted = found.filter(([, , index]) => index > DRIFTED).length;
    say(this.note, drifted ? `${drifted} of ${plural(found.length, "feature")} above ${DRIFTED}` : `none of ${plural(found.length, "feature")} above ${DRIFTED}`);
    fill(this.table.body, found.slice(0, DRIFT_ROWS).map(([name, feature, index]) => {
      const part = h("i");
      part.style.width = `${Math.min(100, 100 * index)}%`;
      tone(part, index > DRIFTED ? "warn" : "plain");
      return [name, feature, { text: index.toFixed(3), kind: "n" }, { node: h("div", { class: "meter", "aria-hidden": "true" }, part), kind: "bar" }];
    }));
  }
}
