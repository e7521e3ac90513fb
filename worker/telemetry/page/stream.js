// The event stream, read with fetch because a header can carry the token, and opened again when it is lost.

const TOKEN = "streaminfer.token";
const QUIET_MS = 20000;

// Relative to the page, which may stand behind a path prefix, with or without a slash at its end.
function beside(path) {
  const here = location.pathname;
  return (here.endsWith("/") ? here : here + "/") + path;
}

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: "Bearer " + token } : {};
}

class Stream {
  // on: {event(name, data), state(word, detail)}; words: live, lost, token, full.
  constructor(on) {
    this.on = on;
    this.wait = 1000;
    this.run();
  }

  async run() {
    for (;;) {
      let why = "the worker does not answer";
      const stop = new AbortController();
      let timer = null;
      const alive = () => { clearTimeout(timer); timer = setTimeout(() => stop.abort(), QUIET_MS); };
      try {
        alive();
        const answer = await fetch(beside("events"), { headers: headers(), cache: "no-store", signal: stop.signal });
        if (answer.status === 401) {
          clearTimeout(timer);
          const tried = sessionStorage.getItem(TOKEN) !== null;
          sessionStorage.removeItem(TOKEN);
          await this.on.token(tried);
          continue;
        }
        if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
        await this.read(answer.body.getReader(), alive);
        why = "the worker ended the stream";
      } catch (error) {
        if (error.name !== "AbortError" && error.name !== "TypeError") why = error.message;
      }
      clearTimeout(timer);
      this.on.lost(why, this.wait);
      await new Promise((done) => setTimeout(done, this.wait));
      this.wait = Math.min(this.wait * 1.6, 10000);
    }
  }

  async read(reader, alive) {
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      text += decoder.decode(value, { stream: true });
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) this.dispatch(part);
    }
  }

  dispatch(part) {
    const fields = {};
    for (const line of part.split("\n")) {
      const at = line.indexOf(": ");
      if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
    }
    if (!fields.data) return;
    this.wait = 1000;
    this.on.event(fields.event, JSON.parse(fields.data));
  }
}
