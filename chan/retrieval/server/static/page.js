// The page of `chan serve`, and of the file that `chan search --out page.html` writes: in the latter the results are
// in the element "frozen", and nothing is fetched.

const SVG = "http://www.w3.org/2000/svg";
const TINTS = 12;
const byId = (id) => document.getElementById(id);
const frozen = byId("frozen") ? JSON.parse(byId("frozen").textContent) : null;

let shown = null; // the results on the page
let asked = 0; // number of the latest request; answers to earlier ones are dropped

function make(name, properties = {}, children = []) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function draw(name, attributes, children = []) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const tint = (word) => `t${word % TINTS}`;
const say = (text) => { byId("status").textContent = text; };

// ---- asking

async function ask(path, parameters) {
  const number = ++asked;
  say("Searching …");
  try {
    const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
    const document = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    if (number !== asked) return null;
    if (!answer.ok) { say(document.error); return null; }
    return document;
  } catch {
    if (number === asked) say("The server does not answer. Is chan serve still running?");
    return null;
  }
}

async function search(query, weights = null) {
  if (!query.trim()) { say("Type what the picture should show."); return; }
  const parameters = { q: query };
  if (weights) parameters.weights = weights.join(",");
  const results = await ask("api/search", parameters);
  if (results) show(results);
}

async function like(id, region) {
  const results = await ask("api/like", { id, region });
  if (results) show(results);
}

// ---- showing

function show(results) {
  shown = results;
  byId("words").replaceChildren(...results.words.map(wordChip));
  byId("results").replaceChildren(...results.hits.map(card));
  const unknown = results.words.filter((word) => !word.known).map((word) => word.text);
  const found = `${results.hits.length} of ${results.images} images, ${results.exact ? "exact" : "approximate"}, ` +
    `${Math.round(1000 * results.seconds)} ms`;
  const title = results.region === undefined ? "" : `Regions like region ${results.region} of ${results.image}. `;
  say(title + found + (unknown.length ? `. Not in the vocabulary: ${unknown.join(", ")}` : ""));
}

function wordChip(word, number) {
  const chip = make("span", { className: `word ${tint(number)}` });
  chip.dataset.word = number;
  chip.classList.toggle("struck", word.weight === 0);
  chip.classList.toggle("unknown", !word.known);
  const name = make("button", { type: "button", className: "name", textContent: word.weight > 1 ? `${word.text} ×${word.weight}` : word.text });
  name.title = word.known ? "" : "not in the model's vocabulary";
  chip.append(name);
  if (!frozen) {
    name.setAttribute("aria-pressed", word.weight === 0);
    name.addEventListener("click", (event) => { // a tap lights the word, as pointing does
      if (event.pointerType !== "touch") reweigh(number, word.weight === 0 ? 1 : 0);
    });
    chip.append(changer("−", `count ${word.text} less`, number, word.weight - 1));
    chip.append(changer("+", `count ${word.text} once more`, number, word.weight + 1));
  }
  lightOn(chip, () => light([number]));
  return chip;
}

function changer(sign, label, number, weight) {
  const button = make("button", { type: "button", className: "more", textContent: sign });
  button.setAttribute("aria-label", label);
  button.disabled = weight < 0 || weight > shown.max_weight;
  button.addEventListener("click", () => reweigh(number, weight));
  return button;
}

async function reweigh(number, weight) {
  const weights = shown.words.map((word, place) => (place === number ? weight : word.weight));
  await search(shown.query, weights);
  byId("words").children[number]?.querySelector(".name").focus();
}

function lightOn(element, on) {
  for (const event of ["pointerenter", "focusin"]) element.addEventListener(event, on);
  for (const event of ["pointerleave", "focusout"]) element.addEventListener(event, () => light([]));
}

function light(words) {
  const lit = new Set(words.map(String));
  document.body.classList.toggle("dimmed", lit.size > 0);
  for (const element of document.querySelectorAll("[data-word], [data-words]")) {
    const own = (element.dataset.words ?? element.dataset.word).split(" ");
    element.classList.toggle("lit", own.some((word) => lit.has(word)));
  }
}

function card(hit, place) {
  const caption = make("figcaption", {}, [
    make("div", { className: "title" }, [
      make("b", { textContent: place + 1 }),
      make("span", { textContent: hit.id }),
      make("span", { className: "score", textContent: `score ${hit.score.toFixed(3)}` }),
    ]),
  ]);
  if (hit.words.length) caption.append(account(hit));
  return make("li", { className: "hit" }, [make("figure", {}, [frame(hit), caption])]);
}

function frame(hit) {
  const holder = make("div", { className: "frame" });
  if (!hit.thumbnail) {
    holder.append(make("p", { className: "absent", textContent: "no image file" }));
    return holder;
  }
  const words = hit.words.map((match) => `${match.word} ${match.value.toFixed(2)}`).join(", ");
  const image = make("img", { src: hit.thumbnail, loading: "lazy", alt: `image ${hit.id}${words ? `: ${words}` : ""}` });
  if (hit.width) { image.width = hit.width; image.height = hit.height; }
  image.addEventListener("error", () => holder.replaceChildren(make("p", { className: "absent", textContent: "the image file cannot be shown" })));
  holder.append(image);
  if (hit.width && hit.regions) holder.append(overlay(hit));
  return holder;
}

function overlay(hit) {
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const known = hit.regions.map((_, region) => region).filter((region) => hit.regions[region]); // others have no box
  const order = known.sort((a, b) => area(hit.regions[b]) - area(hit.regions[a]));
  const groups = order.map((region) => regionOf(hit, region)); // small regions lie on top
  const picture = draw("svg", { viewBox: `0 0 ${hit.width} ${hit.height}`, role: "group", "aria-label": `regions of ${hit.id}` }, groups);
  return picture;
}

function regionOf(hit, region) {
  const [x1, y1, x2, y2] = hit.regions[region];
  const own = hit.words.flatMap((match, word) => (match.region === region ? [word] : []));
  const content = own.filter((word) => shown.words[word].content);
  const names = (content.length ? content : own).map((word) => `${hit.words[word].word} ${hit.words[word].value.toFixed(2)}`);
  const label = [names.join(", "), hit.labels?.[region]].filter(Boolean).join(" · ") || `region ${region}`;
  const chosen = hit.region === region;
  const group = draw("g", { class: "region", "data-region": region }, [
    draw("rect", { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) }),
    draw("title", {}, [label]),
    labelAt(label, x1, y1, hit.width, hit.height),
  ]);
  if (own.length) group.classList.add(tint(content[0] ?? own[0]));
  if (content.length || chosen) { // words that name nothing, as "a" and "of", frame their regions only when lit
    group.classList.add("named", tint(content[0] ?? 0));
    group.setAttribute("tabindex", 0);
    group.setAttribute("role", "button");
    group.setAttribute("aria-label", `${label}; find pictures with such a region`);
  }
  if (own.length) {
    group.dataset.words = own.join(" ");
    lightOn(group, () => light(own));
  }
  if (!frozen) {
    group.addEventListener("click", () => like(hit.id, region));
    group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); like(hit.id, region); } });
  }
  return group;
}

function labelAt(text, x, y, width, height) {
  const size = Math.max(width, height) / 24;
  const long = Math.min(text.length * size * 0.56 + size * 0.6, width);
  const left = Math.max(0, Math.min(x, width - long));
  const top = Math.max(0, y - size * 1.45);
  return draw("g", { class: "label" }, [
    draw("rect", { x: left, y: top, width: long, height: size * 1.4, rx: size * 0.2 }),
    draw("text", { x: left + size * 0.3, y: top + size * 1.02, "font-size": size, textLength: Math.max(long - size * 0.6, 1), lengthAdjust: "spacingAndGlyphs" }, [text]),
  ]);
}

function account(hit) {
  const largest = Math.max(...hit.words.map((match) => Math.abs(match.drop ?? 0)), 1e-9);
  const rows = hit.words.map((match, word) => {
    const bar = make("meter", { min: 0, max: largest, value: Math.max(match.drop ?? 0, 0) });
    bar.setAttribute("aria-label", `${match.word}: the score falls by ${(match.drop ?? 0).toFixed(3)} without it`);
    const row = make("tr", {}, [
      make("th", { scope: "row", textContent: match.word }),
      make("td", { textContent: match.value.toFixed(3) }),
      make("td", { textContent: match.drop === null ? "" : match.drop.toFixed(3) }),
      make("td", {}, [bar]),
    ]);
    row.dataset.word = word;
    lightOn(row, () => light([word]));
    return row;
  });
  const head = make("tr", {}, ["word", "cosine", "score falls by", ""].map((text) => make("th", { scope: "col", textContent: text })));
  const table = make("table", {}, [make("thead", {}, [head]), make("tbody", {}, rows)]);
  return make("details", {}, [make("summary", { textContent: "how the score adds up" }), table]);
}

// ---- beginning

if (frozen) {
  byId("search").remove();
  const tabs = frozen.map((results, number) => {
    const tab = make("button", { type: "button", textContent: results.query ?? `region ${results.region} of ${results.image}` });
    tab.addEventListener("click", () => choose(number));
    return tab;
  });
  const choose = (number) => {
    tabs.forEach((tab, place) => tab.setAttribute("aria-current", place === number));
    show(frozen[number]);
  };
  byId("queries").append(...tabs);
  byId("queries").hidden = false;
  choose(0);
} else {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const query = byId("query").value;
    history.pushState(null, "", `?${new URLSearchParams({ q: query })}`);
    search(query);
  });
  const fromAddress = () => {
    const query = new URLSearchParams(location.search).get("q");
    byId("query").value = query ?? "";
    if (query) search(query);
    else byId("query").focus();
  };
  addEventListener("popstate", fromAddress);
  fromAddress();
}
