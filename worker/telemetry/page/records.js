// Panels about replicas and about single records: dead letters, and samples with their picture.

class Replicas {
  constructor() {
    this.table = table("Replicas", [["Replica"], ["Answered", "n"], ["50 %", "n"], ["99 %", "n"], ["Dead letters", "n"], ["Lag", "n"], ["Partitions", "n"], ["Memory", "n"], ["Cores", "n"], ["Last word", "n"]]);
    this.text = h("p", { class: "none" });
    Object.assign(this, panel("Replicas of the group", "two", this.table.element, this.text));
  }

  update(state) {
    const group = state.group;
    const rows = group && !group.error ? group.replicas : [];
    this.table.element.hidden = rows.length === 0;
    this.text.hidden = rows.length > 0;
    if (!group) say(this.text, "This is one replica. With metrics.topic in the configuration the page shows all replicas of the group.");
    else if (group.error) say(this.text, `The metrics topic cannot be read: ${group.error}`);
    else say(this.text, `Waiting for the first records on ${group.topic}: one comes every ${trim(state.about.interval_s)} s.`);
    const awake = rows.filter((each) => !each.silent).length;
    say(this.note, rows.length ? `${plural(awake, "replica")}, ${rate(group.totals.out)}/s together, told on ${group.topic} every ${trim(state.about.interval_s)} s` : "");
    fill(this.table.body, rows.map((each) => Object.assign([
      each.id + (each.id === state.worker.id ? " (this one)" : ""),
      { text: rate(each.rates.out) + "/s", kind: "n" }, { text: millis(each.p50_ms), kind: "n" }, { text: millis(each.p99_ms), kind: "n" },
      { text: rate(each.rates.dead_letter) + "/s", kind: "n" }, { text: count(each.lag), kind: "n" }, { text: count(each.partitions), kind: "n" },
      { text: bytes(each.rss_bytes), kind: "n" }, { text: trim(each.cpu), kind: "n" },
      { text: each.silent ? `silent for ${duration(each.age_s)}` : `${duration(each.age_s)} ago`, kind: "n" },
    ], { className: (each.silent ? "silent " : "") + (each.id === state.worker.id ? "own" : "") })));
  }
}

class Letters {
  constructor() {
    this.list = h("ul", { class: "letters", tabindex: "0", "aria-label": "The last dead letters" });
    this.none = h("p", { class: "none" }, "none since this replica started");
    Object.assign(this, panel("Last dead letters", "third", this.list, this.none));
  }

  update(state) {
    const mark = JSON.stringify(state.dead_letters);
    if (mark === this.mark) return;
    this.mark = mark;
    this.none.hidden = state.dead_letters.length > 0;
    this.list.hidden = state.dead_letters.length === 0;
    say(this.note, state.dead_letters.length ? `streaminfer dlq list CONFIG shows all on ${state.about.dead_letters}` : "");
    this.list.replaceChildren(...state.dead_letters.map((each) => h("li", {},
      h("div", { class: "row" }, h("span", { class: "tag" }, each.reason), h("span", { class: "muted" }, `${each.stage} · ${each.topic}/${each.partition}/${each.offset}`), h("span", { class: "muted" }, clock(each.time_ms))),
      h("div", {}, each.message))));
  }
}

const BOX_COLOURS = ["#ff3b5c", "#00a8ff", "#23c552", "#ff9500", "#b14aed", "#00c9b7", "#f5d000", "#ff6ad5"];

// All boxes of a prediction, wherever it has them: pixels of the record's own picture.
function boxesOf(prediction) {
  if (!prediction || typeof prediction !== "object") return [];
  if (Array.isArray(prediction.boxes)) return prediction.boxes.filter((box) => Array.isArray(box.xyxy));
  return Object.values(prediction).flatMap((part) => (part && typeof part === "object" && !Array.isArray(part) ? boxesOf(part) : []));
}

function percent(score) {
  return typeof score === "number" && score >= 0 && score <= 1 ? `${trim(100 * score)} %` : "";
}

function inWords(sample) {
  const result = sample.result;
  if (!result) return [`${bytes(sample.bytes)}, not JSON`, "the result is binary, wrapped, or too long to show"];
  const prediction = result.prediction ?? (Array.isArray(result.predictions) ? result.predictions[0] : undefined) ?? result;
  const boxes = boxesOf(prediction);
  if (prediction.boxes || boxes.length) {
    const kinds = new Map();
    for (const box of boxes) kinds.set(box.label, (kinds.get(box.label) || 0) + 1);
    return [boxes.length ? [...kinds].map(([label, n]) => `${n} ${label}`).join(", ") : "nothing found", boxes.slice(0, 4).map((box) => `${box.label} ${percent(box.score)}`).join(", ")];
  }
  if ("label" in prediction) {
    const others = (prediction.top || []).slice(1, 3).map((each) => `${each.label} ${percent(each.score)}`).join(", ");
    return [`${prediction.label ?? "no class"} ${percent(prediction.score)}`, others ? `then ${others}` : ""];
  }
  if (typeof prediction.text === "string") return [prediction.text.slice(0, 80), percent(prediction.score)];
  if ("value" in prediction) return [String(prediction.value), ""];
  if ("anomaly" in prediction) return [prediction.anomaly ? "anomaly" : "normal", `score ${trim(prediction.score)}`];
  if (Array.isArray(prediction.entities)) return [prediction.entities.map((each) => `${each.text}: ${each.label}`).join(", ").slice(0, 80) || "no entity", ""];
  const text = JSON.stringify(prediction);
  return [text.length > 60 ? text.slice(0, 60) + "…" : text, ""];
}

function drawBoxes(canvas, context, boxes, picture) {
  const x = canvas.width / picture.width, y = canvas.height / picture.height;
  const thick = Math.max(2, canvas.width / 160);
  context.lineWidth = thick;
  context.font = `600 ${Math.max(10, canvas.width / 26)}px system-ui, sans-serif`;
  context.textBaseline = "bottom";
  boxes.slice(0, 60).forEach((box) => {
    const [left, top, right, bottom] = [box.xyxy[0] * x, box.xyxy[1] * y, box.xyxy[2] * x, box.xyxy[3] * y];
    const paint = BOX_COLOURS[(box.class_id || 0) % BOX_COLOURS.length];
    context.strokeStyle = paint;
    context.strokeRect(left, top, right - left, bottom - top);
    for (const point of box.keypoints || []) { context.fillStyle = paint; context.fillRect(point[0] * x - thick, point[1] * y - thick, 2 * thick, 2 * thick); }
    if (boxes.length > 12) return;
    const text = `${box.label} ${percent(box.score)}`, wide = context.measureText(text).width + 8;
    const high = Math.max(13, canvas.width / 20), base = Math.max(high, top);
    context.fillStyle = paint;
    context.fillRect(left - thick / 2, base - high, wide, high);
    context.fillStyle = "#101418";
    context.fillText(text, left + 4 - thick / 2, base - 2);
  });
}

async function paint(canvas, sample) {
  const picture = sample.picture;
  const file = Uint8Array.from(atob(picture.file), (each) => each.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([file], { type: picture.mime }));
  const boxes = boxesOf(sample.result && (sample.result.prediction ?? (sample.result.predictions || [])[0]));
  const grow = boxes.length ? Math.max(1, Math.round(240 / bitmap.width)) : 1;
  canvas.width = bitmap.width * grow;
  canvas.height = bitmap.height * grow;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = picture.mime === "image/jpeg";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  drawBoxes(canvas, context, boxes, picture);
  canvas.dataset.painted = sample.number;
}

class Samples {
  constructor() {
    this.list = h("ul", { class: "samples" });
    this.none = h("p", { class: "none" });
    this.cards = new Map();
    Object.assign(this, panel("Last results", "full", this.list, this.none));
  }

  update(state, _history, samples) {
    this.element.hidden = state.about.samples === 0;
    this.none.hidden = samples.length > 0;
    say(this.none, "no result yet");
    say(this.note, "page.samples shows the content of records; at most two a second");
    const wanted = new Set(samples.map((each) => each.number));
    for (const [number, card] of this.cards) if (!wanted.has(number)) { card.remove(); this.cards.delete(number); }
    for (const sample of [...samples].reverse()) {
      if (this.cards.has(sample.number)) continue;
      const card = this.card(sample);
      this.cards.set(sample.number, card);
      this.list.prepend(card);
    }
  }

  card(sample) {
    const [title, more] = inWords(sample);
    const place = `${sample.topic}/${sample.partition}/${sample.offset}`;
    let view = null;
    if (sample.picture) {
      const canvas = h("canvas", { role: "img", "aria-label": `Picture of ${place}: ${title}`, class: sample.picture.mime === "image/png" ? "sharp" : null });
      paint(canvas, sample).catch(() => canvas.replaceWith(h("span", { class: "muted" }, "picture not readable")));
      view = h("div", { class: "view" }, canvas);
    }
    const took = sample.result && sample.result.latency_ms ? `, ${millis(sample.result.latency_ms.total)}` : "";
    return h("li", { "data-number": sample.number, "data-place": place }, view, h("div", { class: "text" }, h("b", {}, title), more ? h("span", {}, more) : null, h("span", { class: "muted" }, place), h("span", { class: "muted", title: sample.model }, `${clock(sample.time_ms)}${took}`)));
  }
}
