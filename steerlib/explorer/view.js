// The explorer's view: slider, answers, curves and score bars of answers that are all there. It asks nobody anything,
// so that the same lines serve the live widget and the saved page. Text reaches the page as text nodes alone.
const CSS = `
.ax { color: var(--jp-ui-font-color1, #222); font: 14px/1.45 system-ui, sans-serif; max-width: 1180px; }
.ax-row { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; margin: 6px 0; }
.ax input[type=range] { flex: 1 1 500px; min-width: min(500px, 100%); height: 24px; accent-color: #0072b2; }
.ax-number { width: 5.5em; } .ax-muted { color: var(--jp-ui-font-color2, #616161); font-size: 12px; }
.ax-boxes { display: flex; flex-wrap: wrap; gap: 6px 18px; } .ax-stale { opacity: .3; }
.ax-box { flex: 1 1 210px; min-width: 0; border-top: 4px solid; padding-top: 4px; }
.ax-text { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 5.6em; margin: 4px 0; }
.ax-changed { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 3px; }
.ax-at, .ax :focus-visible { outline: 2px solid #0072b2; outline-offset: 1px; }
.ax-badge { border: 2px solid #d55e00; padding: 0 5px; font-weight: 600; font-size: 12px; }
.ax-info { min-height: 7.5em; white-space: pre-wrap; } .ax-curves { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 4px 18px; }
.ax-curves svg { flex: 1 1 250px; height: auto; min-width: 0; max-height: 150px; }
.ax-bars { display: grid; grid-template-columns: 8.5em minmax(90px, 1fr) 13em; gap: 2px 8px; font-size: 12px; align-items: center; }
.ax-bar { height: 4px; margin: 1px 0; min-width: 1px; } .ax-track { position: relative; background: rgba(127,127,127,.14); }
.ax-accepted { position: absolute; top: -2px; bottom: -2px; width: 3px; background: currentColor; }
.ax details > summary { cursor: pointer; }`;

function el(tag, options = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "text", "circle", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  // JupyterLab binds arrows and digits for whatever has the focus, but not for what says so.
  if ("tabindex" in options || ["input", "button", "select"].includes(tag)) node.setAttribute("data-lm-suppress-shortcuts", "true");
  node.append(...children.filter((child) => child != null));
  return node;
}
const short = (x) => String(Math.round(x * 1e4) / 1e4);
const percent = (mille) => (mille < 0.5 ? "<0.1" : (mille / 10).toFixed(1)) + " %";
const known = (x) => typeof x === "number";

function answerAt(data, alpha) {
  const rows = data.steered;
  if (!rows.length) return null;
  if (data.exact) return rows.findLast((row) => row.low <= alpha) ?? rows[0];
  return rows.reduce((best, row) => (Math.abs(row.low - alpha) < Math.abs(best.low - alpha) ? row : best));
}

// A token: text, probability under the base and steered in per mille, and words and probabilities of each branch.
// Colour says whether steering made it likelier (blue) or less likely (orange), opacity by how many powers of two.
function shade(token) {
  if (!token || !known(token[2])) return "";
  const d = Math.max(-4, Math.min(4, Math.log2((token[2] + 1e-3) / (token[1] + 1e-3))));
  return `background:rgba(${d > 0 ? "0,114,178" : "230,159,0"},${(0.11 * Math.abs(d)).toFixed(2)})`;
}

function told(token, branches) {
  if (!token) return "";
  const [text, base, steered, tops] = token;
  const best = (words) => words.flatMap((word, i) => (i % 2 ? [] : [`${JSON.stringify(word)} ${percent(words[i + 1])}`])).join(", ");
  const moved = known(steered) ? ` → steered ${percent(steered)}` : "";
  return [`${JSON.stringify(text)}: base ${percent(base)}${moved}`, ...branches.map((name, i) => `${name}: ${best(tops[i])}`)].join("\n");
}

function numbers(row, steered) {
  const ends = !row.complete ? "not complete" : row.stopped ? "by itself" : "at the limit";
  const words = [`${row.n_tokens} tokens, ends ${ends}`, `NLL under the base ${known(row.nll) ? row.nll.toFixed(2) : "undefined"} nats per token`];
  if (!row.complete) words.push("all that its alphas were seen to share");
  if (steered && known(row.ratio)) words.push(`perplexity × ${row.ratio.toFixed(2)}`);
  if (steered && known(row.kl)) words.push(`KL to the base ${row.kl.toFixed(2)} nats per token`);
  return words.join(" · ");
}

function box(answer, title, where, info) {
  const spans = answer.pieces.map(([text, changed, place]) => {
    const token = answer.tokens[place];
    const span = el("span", { class: changed ? "ax-changed" : "", style: shade(token), onmouseenter: () => (info.textContent = told(token, answer.branches)) }, text);
    if (token) span.title = told(token, answer.branches);
    return span;
  });
  let at = -1;
  const walk = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !spans.length) return;
    spans[at]?.classList.remove("ax-at");
    at = Math.max(0, Math.min(spans.length - 1, at + step));
    spans[at].classList.add("ax-at");
    info.textContent = told(answer.tokens[answer.pieces[at][2]], answer.branches);
    event.preventDefault();
  };
  const text = spans.length ? spans : [el("i", { class: "ax-muted" }, "(empty answer)")];
  const label = `${title}; arrow keys walk over its tokens`;
  return el("div", { class: "ax-box", style: `border-color:${answer.colour}` },
    el("b", {}, title), " ", el("span", { class: "ax-muted ax-where" }, where), " ",
    answer.collapsed ? el("span", { class: "ax-badge", title: "perplexity far above the base's, or none" }, "⚠ collapsed") : null,
    el("div", { class: "ax-text", tabindex: 0, role: "group", "aria-label": label, onkeydown: walk }, ...text),
    el("div", { class: "ax-muted" }, numbers(answer, known(answer.low))));
}

function bars(data, base, steered) {
  const rows = data.attributes.flatMap(([key, name], i) => {
    const values = [base, steered].filter((one) => one && known(one.scores[i]));
    const track = el("div", { class: "ax-track" }, ...values.map((one) => el("div", { class: "ax-bar", style: `width:${100 * one.scores[i]}%;background:${one.colour}` })));
    const mark = data.accepted?.[i];
    if (known(mark)) track.append(el("div", { class: "ax-accepted", style: `left:calc(${100 * mark}% - 1px)` }));
    const words = values.map((one) => one.scores[i].toFixed(2)).join(" → ") + (known(mark) ? ` (accepted ${mark.toFixed(2)})` : "");
    const bold = key === data.category ? "font-weight:700" : "";
    return [el("span", { style: bold }, name), track, el("span", { style: bold }, words)];
  });
  const legend = "Scores from 0 to 1, the base above, the steered answer below" + (data.accepted ? "; upright mark: the person's accepted answer" : "");
  return el("div", {}, el("div", { class: "ax-muted" }, legend), el("div", { class: "ax-bars" }, ...rows));
}

// Noise in a third decimal should not look like an effect, so the axes reach at least here.
const LEAST = { score: 0.25, nll: 1 };

function curve(data, alpha, key, name) {
  const W = 420, H = 128, left = 46, right = 412, top = 20, bottom = 98;
  const rows = [data.base, ...data.steered].filter((row) => known(row[key]));
  const high = Math.max(LEAST[key], ...rows.map((row) => row[key])) * 1.08;
  const x = (a) => left + ((a - data.alpha_min) / (data.alpha_max - data.alpha_min || 1)) * (right - left);
  const y = (value) => bottom - (Math.min(value, high) / high) * (bottom - top);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "xMinYMin", role: "img", "aria-label": `${name} over ${data.symbol}` });
  const text = (words, options) => el("text", { "font-size": 11, fill: "currentColor", ...options }, words);
  if (data.range) svg.append(el("rect", { x: x(data.range[0]) - 2, width: x(data.range[1]) - x(data.range[0]) + 4, y: top, height: bottom - top, fill: "#f0e442", opacity: 0.35 }, el("title", {}, "operating range of the run")));
  svg.append(el("path", { d: `M${left} ${top}V${bottom}H${right}`, stroke: "currentColor", fill: "none", opacity: 0.5 }));
  svg.append(el("line", { x1: left, x2: right, y1: y(data.base[key] ?? 0), y2: y(data.base[key] ?? 0), stroke: data.base.colour, "stroke-dasharray": "5 3", "stroke-width": 1.5 }));
  for (const row of data.steered.filter((one) => one.complete && known(one[key]))) {
    if (data.exact) svg.append(el("line", { x1: x(row.low), x2: x(row.high), y1: y(row[key]), y2: y(row[key]), stroke: row.colour, "stroke-width": 2.5 }));
    else svg.append(el("circle", { cx: x(row.low), cy: y(row[key]), r: 3.5, fill: row.colour }));
  }
  if (known(data.chosen)) svg.append(el("path", { d: `M${x(data.chosen) - 5} ${top - 7}h10l-5 8z`, fill: "currentColor" }, el("title", {}, `alpha chosen on dev: ${short(data.chosen)}`)));
  svg.append(el("line", { x1: x(alpha), x2: x(alpha), y1: top, y2: bottom, stroke: "currentColor", "stroke-width": 1.5 }));
  const now = answerAt(data, alpha);
  if (now && known(now[key])) svg.append(el("circle", { class: "ax-now", cx: x(alpha), cy: y(now[key]), r: 5, fill: "none", stroke: "currentColor", "stroke-width": 2 }));
  svg.append(text(name, { x: left, y: 10 }), text((high / 1.08).toFixed(2), { x: left - 8, y: top + 8, "text-anchor": "end" }), text("0", { x: left - 8, y: bottom, "text-anchor": "end" }));
  svg.append(text(short(data.alpha_min), { x: left, y: 113 }), text(data.symbol, { x: (left + right) / 2, y: 113, "text-anchor": "middle" }), text(short(data.alpha_max), { x: right, y: 113, "text-anchor": "end" }));
  return svg;
}

function mount(root, { onAlpha = () => {}, onSave = null } = {}) {
  let data = null, alpha = 0, pinned = null;
  const slider = el("input", { type: "range", class: "ax-slider", "aria-label": "alpha", oninput: () => move(+slider.value) });
  const number = el("input", { type: "number", class: "ax-number", "aria-label": "alpha, typed", onchange: () => move(+number.value) });
  const pin = el("button", { type: "button", onclick: () => { pinned = pinned ? null : current(); draw(); } }, "Pin this answer");
  const save = onSave && el("button", { type: "button", onclick: onSave }, "Save this page");
  const name = el("label", {}, "alpha"), body = el("div", { class: "ax-body" }), stream = el("div", { class: "ax-stream" });
  const info = el("div", { class: "ax-muted ax-info", "aria-live": "polite" });
  root.replaceChildren(el("style", {}, CSS), el("div", { class: "ax" }, el("div", { class: "ax-row" }, name, slider, number, pin, save), stream, body));
  const where = (row) => (data.exact ? `${data.symbol} = ${short(alpha)}, this answer from ${short(row.low)} to ${short(row.high)}` : `${data.symbol} = ${short(alpha)}, answer decoded at ${short(row.low)}`);
  const current = () => { const row = answerAt(data, alpha); return row && [row, `Pinned: ${data.label}`, where(row)]; };
  function move(value) {
    if (!data || !Number.isFinite(value)) return;
    alpha = Math.max(data.alpha_min, Math.min(data.alpha_max, value));
    onAlpha(alpha);
    draw();
  }
  function draw() {
    [slider.value, number.value] = [alpha, Math.round(alpha * 1e4) / 1e4];
    pin.textContent = pinned ? "Unpin" : "Pin this answer";
    if (!data) return body.replaceChildren();
    const steered = answerAt(data, alpha);
    info.textContent = "Point at a token, or walk over an answer with the arrow keys: its probability and the likeliest tokens of each branch.";
    const boxes = [[data.base, "Base", "no steering"], steered && [steered, data.label, where(steered)], pinned].filter(Boolean);
    body.replaceChildren(
      el("div", { class: "ax-curves" }, curve(data, alpha, "score", data.score_name), curve(data, alpha, "nll", "NLL under the base, nats per token")),
      el("div", { class: "ax-boxes" }, ...boxes.map((one) => box(...one, info))), bars(data, data.base, steered), info);
  }
  return {
    show(next) {
      data = next;
      for (const input of [slider, number]) for (const [key, value] of [["min", data.alpha_min], ["max", data.alpha_max], ["step", data.step]]) input.setAttribute(key, value);
      slider.step = data.step;
      name.textContent = data.symbol;
      alpha = Math.max(data.alpha_min, Math.min(data.alpha_max, alpha));
      draw();
    },
    move(value) { if (value !== alpha) { alpha = value; draw(); } },
    stale(is) { body.classList.toggle("ax-stale", is); },
    stream(text) { stream.textContent = text; },
  };
}

// A saved page: several prompts, one shown at a time.
function page(root, pages) {
  const place = el("div"), prompt = el("p", { style: "white-space:pre-wrap" });
  const choice = el("select", { "aria-label": "Prompt", onchange: () => choose() }, ...pages.map((one, i) => el("option", { value: i }, one.prompt.slice(0, 90))));
  const chosen = pages.length > 1 && el("p", {}, "These openings were chosen, not sampled, because steering shows there: they say what steering can look like, not what it does on average.");
  root.replaceChildren(...[el("p", {}, choice), chosen, prompt, place].filter(Boolean));
  const view = mount(place);
  function choose() {
    const one = pages[+choice.value];
    prompt.textContent = `${one.label}, steered in category ${one.category.replace("_", " ")}. Prompt: ${one.prompt} …`;
    view.move(one.start);
    view.show(one);
  }
  choose();
}

// The live widget: data, what is stale and the text being decoded are the kernel's. Moving the slider is not: the kernel
// is told where it rests, and never moves it back.
function render({ model, el: root }) {
  let resting = 0;
  const view = mount(root, {
    onAlpha: (alpha) => { clearTimeout(resting); resting = setTimeout(() => model.send({ alpha }), 80); },
    onSave: () => model.send({ save: true }),
  });
  view.move(model.get("start"));
  // Typing dims at once, however busy the kernel is.
  document.addEventListener("input", ({ target }) => {
    if (target.matches(".explorer-text textarea")) view.stale(target.value !== model.get("data").prompt);
  });
  const follow = {
    data: (data) => data.base && view.show(data),
    stale: view.stale,
    streamed: view.stream,
  };
  for (const [name, act] of Object.entries(follow)) {
    model.on(`change:${name}`, () => act(model.get(name)));
    act(model.get(name));
  }
  model.on("msg:custom", (html) => {
    const address = URL.createObjectURL(new Blob([html], { type: "text/html" }));
    el("a", { href: address, download: "alpha_explorer.html" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
}
