// Numbers, times and elements, as people read them.

const DASH = "–";

function count(value) {
  if (value === null || value === undefined) return DASH;
  const size = Math.abs(value);
  if (size >= 1e9) return trim(value / 1e9) + " G";
  if (size >= 1e6) return trim(value / 1e6) + " M";
  if (size >= 1e5) return trim(value / 1e3) + " k";
  return Math.round(value).toLocaleString("en-US");
}

function trim(value) {
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : value.toFixed(size >= 10 ? 1 : 2).replace(/\.?0+$/, "");
}

function rate(value) {
  if (value === null || value === undefined) return DASH;
  return value > 0 && value < 10 ? trim(value) : count(value);
}

function bytes(value) {
  if (value === null || value === undefined) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return (unit === 0 ? value : trim(value)) + " " + units[unit];
}

function millis(value) {
  if (value === null || value === undefined) return DASH;
  if (value >= 60000) return duration(value / 1000);
  if (value >= 1000) return trim(value / 1000) + " s";
  if (value >= 1) return trim(value) + " ms";
  return Math.round(value * 1000) + " µs";
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 1) return seconds === 0 ? "0 s" : "< 1 s";
  if (seconds < 100) return Math.round(seconds) + " s";
  if (seconds < 6000) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return trim(seconds / 3600) + " h";
  return trim(seconds / 86400) + " d";
}

function drain(partition) {
  if (partition.lag === null || partition.lag === undefined) return DASH;
  if (partition.moving === false) return "not moving";
  return partition.lag === 0 ? "0 s" : duration(partition.seconds_to_drain);
}

function clock(ms, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(ms).toLocaleTimeString("en-GB", options);
}

function plural(number, word) {
  return count(number) + " " + word + (number === 1 ? "" : "s");
}

// An element with attributes and children; text is always text, never markup.
function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "style") Object.assign(made.style, value);
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function tone(element, value) {
  if (element.dataset.tone !== value) element.dataset.tone = value;
}

function colour(name) {
  return `var(--${name})`;
}

function key(name) {
  return h("span", { class: "key", style: { background: colour(name) }, "aria-hidden": "true" });
}

// Rows of a table body, made anew only where their text has changed.
function fill(body, rows) {
  const wanted = rows.length;
  while (body.rows.length > wanted) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] || body.insertRow();
    row.className = cells.className || "";
    cells.forEach((cell, place) => {
      const box = row.cells[place] || row.insertCell();
      const { text, kind, node } = typeof cell === "object" && cell !== null ? cell : { text: cell };
      if (box.className !== (kind || "")) box.className = kind || "";
      if (node) box.replaceChildren(node);
      else say(box, String(text ?? DASH));
    });
    while (row.cells.length > cells.length) row.deleteCell(-1);
  });
}

function table(caption, heads) {
  const body = h("tbody");
  const head = h("tr", {}, ...heads.map(([text, kind]) => h("th", { scope: "col", class: kind || null }, text)));
  const whole = h("table", {}, h("caption", {}, caption), h("thead", {}, head), body);
  return { body, element: h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, table` }, whole) };
}
