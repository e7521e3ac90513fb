// Charts over time as plain SVG: lines, or areas on top of one another.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 8, TOP = 10, BOTTOM = 20;

function s(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Steps of 1, 2 or 5 times a power of ten, at most four of them.
function ticks(top, smallest) {
  const rough = top / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(smallest, [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough));
  const found = [];
  for (let value = 0; value <= top * 1.0001; value += step) found.push(value);
  if (found[found.length - 1] < top) found.push(found[found.length - 1] + step);
  return found;
}

class Chart {
  // series: [{name, label, color}]; stacked: areas; format: a value as text; least: the
  // lowest top of the scale; step: the smallest distance of its marks;
  // binary: its marks are round in MiB.
  constructor(title, { series, stacked = false, format, least = 1, step = 0, binary = false }) {
    this.title = title;
    this.series = series;
    this.stacked = stacked;
    this.format = format;
    this.least = least;
    this.step = step;
    this.unit = binary ? 1048576 : 1;
    this.times = [];
    this.columns = series.map(() => []);
    this.at = null;
    this.svg = s("svg", { role: "img", tabindex: "0" });
    this.grid = s("g");
    this.marks = s("g");
    this.cross = s("line", { class: "cross", visibility: "hidden" });
    this.svg.append(this.grid, this.marks, this.cross);
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "chart" }, this.svg, this.tip);
    this.paths = series.map((each) => {
      const path = s("path", stacked ? { "fill-opacity": "0.92" } : { class: "line" });
      path.style[stacked ? "fill" : "stroke"] = colour(each.color);
      this.marks.append(path);
      return path;
    });
    this.element.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.element.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  set(times, columns) {
    this.times = times;
    this.columns = columns;
    this.draw();
  }

  draw() {
    const width = this.element.clientWidth, height = this.element.clientHeight;
    if (!width || document.hidden) return;
    const { times } = this;
    const end = times.length ? times[times.length - 1] : Date.now();
    const span = Math.max(60000, times.length ? end - times[0] : 0);
    const sums = this.stacked ? this.stack() : this.columns;
    let top = this.least;
    for (const column of this.stacked ? sums.slice(-1) : sums) for (const value of column) if (value > top) top = value;
    const steps = ticks(top / this.unit, this.step).map((each) => each * this.unit);
    top = steps[steps.length - 1];
    const size = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    const left = LEFT * size, bottom = BOTTOM * size;
    this.x = (time) => left + (1 - (end - time) / span) * (width - left - RIGHT);
    this.y = (value) => height - bottom - (value / top) * (height - bottom - TOP);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.drawGrid(steps, end, span, width, height, left, size);
    this.paths.forEach((path, index) => {
      const below = this.stacked && index ? sums[index - 1] : null;
      path.setAttribute("d", this.stacked ? this.area(sums[index], below) : this.line(sums[index]));
    });
    const last = this.columns.map((column) => column[column.length - 1]);
    const now = this.series.map((each, index) => `${each.label} ${this.format(last[index])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}, last ${duration(span / 1000)}. Now: ${now}. Arrow keys read single seconds.`);
    this.drawTip();
  }

  drawGrid(steps, end, span, width, height, left, size) {
    const made = [];
    for (const value of steps) {
      const y = Math.round(this.y(value)) + 0.5;
      const label = s("text", { x: left - 6, y: y + 4 * size, "text-anchor": "end" });
      label.textContent = this.format(value);
      made.push(s("line", { class: "grid", x1: left, x2: width - RIGHT, y1: y, y2: y }), label);
    }
    const every = [15, 30, 60, 120, 300].find((each) => (width - left) / (span / 1000 / each) > 62 * size) * 1000 || 300000;
    const first = Math.ceil((end - span) / every) * every;
    for (let time = first; time <= end; time += every) {
      const x = this.x(time);
      if (x > width - 14 * size || x < left + 10) continue;
      const label = s("text", { x, y: height - 4, "text-anchor": "middle" });
      label.textContent = clock(time, every < 60000);
      made.push(label);
    }
    this.grid.replaceChildren(...made);
  }

  stack() {
    const sums = [];
    this.columns.forEach((column, index) => {
      sums.push(column.map((value, place) => (value === null ? null : value + (index ? sums[index - 1][place] : 0))));
    });
    return sums;
  }

  // Stretches without a gap, as [first, last]; a single second is drawn one second wide.
  *runs(column) {
    let first = null;
    for (let index = 0; index <= column.length; index += 1) {
      const there = index < column.length && column[index] !== null && column[index] !== undefined;
      if (there && first === null) first = index;
      if (!there && first !== null) { yield [first, index - 1]; first = null; }
    }
  }

  corners(column, first, last) {
    const points = [];
    for (let index = first; index <= last; index += 1) points.push([this.x(this.times[index]), this.y(column[index])]);
    if (first === last) { points.unshift([points[0][0] - 1.5, points[0][1]]); points[1][0] += 1.5; }
    return points;
  }

  line(column) {
    let path = "";
    for (const [first, last] of this.runs(column)) {
      path += "M" + this.corners(column, first, last).map((each) => each.map((n) => n.toFixed(1)).join(" ")).join("L");
    }
    return path;
  }

  area(column, below) {
    let path = "";
    for (const [first, last] of this.runs(column)) {
      const upper = this.corners(column, first, last);
      const floor = this.y(0);
      const lower = below ? this.corners(below, first, last) : [[upper[0][0], floor], [upper[upper.length - 1][0], floor]];
      path += "M" + [...upper, ...lower.reverse()].map((each) => each.map((n) => n.toFixed(1)).join(" ")).join("L") + "Z";
    }
    return path;
  }

  point(clientX) {
    if (!this.times.length || !this.x) return;
    const x = clientX - this.element.getBoundingClientRect().left;
    let best = 0;
    this.times.forEach((time, index) => {
      if (Math.abs(this.x(time) - x) < Math.abs(this.x(this.times[best]) - x)) best = index;
    });
    this.choose(this.times[best]);
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -60, PageDown: 60, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape") this.choose(null);
    if (!step || !this.times.length) return;
    event.preventDefault();
    const here = this.at === null ? this.times.length : this.times.indexOf(this.at);
    this.tip.setAttribute("aria-live", "polite");
    this.choose(this.times[Math.min(this.times.length - 1, Math.max(0, here + step))]);
  }

  choose(time) {
    this.at = time;
    if (time === null) this.tip.removeAttribute("aria-live");
    this.drawTip();
  }

  drawTip() {
    const index = this.at === null ? -1 : this.times.indexOf(this.at);
    this.tip.hidden = index < 0;
    this.cross.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index < 0) return;
    const x = this.x(this.at), width = this.element.clientWidth;
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", TOP], ["y2", this.y(0)]]) this.cross.setAttribute(name, value);
    const rows = this.series.map((each, place) => h("div", {}, h("span", {}, key(each.color), each.label), h("b", {}, this.format(this.columns[place][index]))));
    if (this.stacked) rows.reverse();
    this.tip.replaceChildren(h("div", {}, h("b", {}, clock(this.at))), ...rows);
    this.tip.style.left = x < width / 2 ? `${x + 10}px` : "auto";
    this.tip.style.right = x < width / 2 ? "auto" : `${width - x + 10}px`;
  }
}

// The same data as a table, one row for each of the last ten minutes; filled only while it is open.
class Minutes {
  constructor(chart) {
    this.chart = chart;
    this.table = table(`${chart.title} by minute`, [["Minute"], ...chart.series.map((each) => [each.label, "n"])]);
    this.element = h("details", {}, h("summary", {}, "As a table"), this.table.element);
    this.element.addEventListener("toggle", () => this.draw());
  }

  draw() {
    if (!this.element.open) return;
    const { times, columns, format, series } = this.chart;
    const minutes = new Map();
    times.forEach((time, index) => {
      const minute = Math.floor(time / 60000) * 60000;
      if (!minutes.has(minute)) minutes.set(minute, series.map(() => []));
      columns.forEach((column, place) => { if (column[index] !== null) minutes.get(minute)[place].push(column[index]); });
    });
    const mean = (values) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null);
    fill(this.table.body, [...minutes.entries()].reverse().map(([minute, found]) => [
      { text: clock(minute, false) }, ...found.map((values) => ({ text: format(mean(values)), kind: "n" })),
    ]));
  }
}
