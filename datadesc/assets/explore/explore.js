// The explorer's page: draws what `datadesc.explore.Explorer` answers and sends back what is clicked, typed or chosen.
// Whatever comes from a dataset, an article or a language model goes into the page as text nodes, never as markup.

const h = (tag, props = {}, ...children) => {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else if (name === "class") e.className = value;
    else if (value === true) e.setAttribute(name, "");
    else if (value !== false && value != null) e.setAttribute(name, value);
  }
  e.append(...children.flat().filter(child => child != null));
  return e;
};
const bdi = text => h("bdi", {}, text);
const short = (text, most = 80) => [...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text;
const number = x => x == null ? "–" : Math.abs(x) >= 100 ? x.toFixed(0) : x === 0 ? "0" : (Math.abs(x) < 1e-4 ? x.toExponential(0) : x.toPrecision(2)).replaceAll("-", "−");
const percent = x => x == null ? "–" : (100 * x).toFixed(1) + " %";
const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const SPLITS = {train: "training", val: "validation", test: "test"};
const MARKS = {accepted: ["✓", "accepted"], rejected: ["✗", "rejected"], starred: ["★", "starred"]};

const select = (label, options, value, onchange, props = {}) => {
  const e = h("select", {"aria-label": label, onchange: () => onchange(e.value), ...props},
    options.map(([key, words]) => h("option", {value: key}, words)));
  e.value = value;
  return e;
};
// Draws a part of the page anew; the focus goes back to the control that had it, or to the part where that is gone.
function redraw(part, draw) {
  const had = part.contains(document.activeElement) && document.activeElement !== part ? document.activeElement : null;
  draw();
  if (!had) return;
  const named = e => e.getAttribute("aria-label") || e.textContent;
  const same = [...part.querySelectorAll(".dd-do, .dd-back, .dd-close, .dd-pairs button, .dd-pager button, select")].find(e => e.tagName === had.tagName && named(e) === named(had) && !e.disabled);
  (same || part).focus({preventScroll: true});
}
const labelled = (words, control) => h("label", {class: "dd-field"}, h("span", {}, words), control);

function render({model, el}) {
  const root = h("div", {class: "dd-explore", "data-lm-suppress-shortcuts": "true"});  // else JupyterLab takes the letters
  el.append(root);
  const facts = model.get("facts");
  const ui = {sort: "choice", mode: "class", image: null, sentence: null, other: null, history: [], edits: null, seq: 0, timer: null};
  const names = facts.classes;

  const send = content => {
    ui.seq += 1;
    root.setAttribute("aria-busy", "true");
    model.send({...content, seq: ui.seq});
  };

  // ------------------------------------------------------------------ the bar
  const step = by => send({do: "class", c: (model.get("page").c + by + names.length) % names.length});
  const classes = select("Class", names.map((name, c) => [c, short(name)]), 0, c => send({do: "class", c: +c}), {class: "dd-pick"});
  const form = select("How sentences are chosen", facts.forms.map(f => [f.form, f.name]), "", choose);
  const k = select("Sentences per class", facts.top_k.map(n => [n, n === "auto" ? "auto" : String(n)]), "", choose);
  function choose() { ui.sort = "choice"; send({do: "choose", form: form.value, top_k: k.value}); }
  const accuracy = h("output", {class: "dd-accuracy", "aria-live": "polite"});
  const save = h("button", {type: "button", class: "dd-save", onclick: () => { if (model.get("bar").unsaved) send({do: "save"}); }}, "Save");
  const message = h("p", {class: "dd-message", role: "status", "aria-live": "polite"});
  const tab = (mode, words) => h("button", {type: "button", role: "tab", "data-mode": mode, onclick: () => show(mode)}, words);
  const tabs = h("div", {class: "dd-tabs", role: "tablist"}, tab("class", "One class"), tab("compare", "Compare two classes"));
  root.append(h("div", {class: "dd-bar"}, h("h2", {title: facts.title}, bdi(short(facts.title, 40))),
    h("div", {class: "dd-choose"}, h("button", {type: "button", "aria-label": "Previous class", onclick: () => step(-1)}, "‹"),
      labelled("Class", classes), h("button", {type: "button", "aria-label": "Next class", onclick: () => step(1)}, "›")),
    labelled("Chosen by", form), labelled("per class", k), accuracy, save), message, tabs);

  const main = h("div", {class: "dd-main"});
  root.append(main);

  function show(mode) {
    ui.mode = mode;
    for (const t of tabs.children) t.setAttribute("aria-selected", String(t.dataset.mode === mode));
    main.className = `dd-main dd-${mode}`;
    main.replaceChildren(...(mode === "class" ? [images, sentences] : [comparison]));
    place();
    if (mode !== "compare") return;
    send({do: "compare", a: model.get("page").c, b: ui.other});
  }

  // A list in which arrow keys move: one stop of the Tab key, the active row named to screen readers.
  function list(label, props, pick, keys = {}, columns = () => 1) {
    const box = h("div", {class: "dd-list", role: "listbox", tabindex: "0", "aria-label": label, ...props});
    box.at = () => [...box.children].findIndex(row => row.getAttribute("aria-selected") === "true");
    box.mark = i => {
      for (const [j, row] of [...box.children].entries()) row.setAttribute("aria-selected", String(j === i));
      const row = box.children[i];
      if (!row) return box.removeAttribute("aria-activedescendant");
      box.setAttribute("aria-activedescendant", row.id);
      const top = row.offsetTop - box.offsetTop;
      if (top < box.scrollTop) box.scrollTop = top;
      else if (top + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + row.offsetHeight - box.clientHeight;
    };
    box.addEventListener("click", event => {
      const row = event.target.closest("[role=option]");
      if (row) { box.mark([...box.children].indexOf(row)); pick(row); }
    });
    box.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const n = box.children.length, at = box.at(), c = columns();
      const to = {ArrowDown: at + c, ArrowUp: at - c, ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: n - 1}[event.key];
      if (to !== undefined && n) {
        event.preventDefault();
        const i = Math.max(0, Math.min(n - 1, at < 0 ? 0 : to));
        if (i !== at) { box.mark(i); pick(box.children[i]); }
      } else if (at >= 0 && keys[event.key.toLowerCase()]) { event.preventDefault(); keys[event.key.toLowerCase()](box.children[at]); }
    });
    return box;
  }
  const uid = Math.random().toString(36).slice(2, 8);

  // ------------------------------------------------------------------ images of the class
  const imageSplit = select("Images of which split", [], "", split => send({do: "images", split}));
  const imageOrder = select("Order of images", [["doubtful", "doubtful labels first"], ["typical", "typical first"], ["listed", "as listed"]],
    "doubtful", order => send({do: "images", order}));
  const grid = list("Images", {class: "dd-list dd-images"}, row => look(row.dataset.split, +row.dataset.i),
    {c: () => detail.querySelector(".dd-label select")?.focus(), k: row => labelRow(row, model.get("album").c), o: row => labelRow(row, -1)},
    () => Math.max(1, Math.floor(grid.clientWidth / 92)));
  const pager = h("div", {class: "dd-pager"});
  const images = h("section", {class: "dd-panel"}, h("h3", {}, "Images"), h("div", {class: "dd-tools"}, imageSplit, imageOrder), grid, pager,
    h("p", {class: "dd-keys"}, "Keys in the images: arrows move, C correct, K keep the label, O leave out"));
  const labelRow = (row, c) => {
    const next = grid.children[grid.at() + 1];
    send({do: "label", split: row.dataset.split, i: +row.dataset.i, c});
    if (next) look(next.dataset.split, +next.dataset.i);
  };
  const look = (split, i) => detailOf({do: "image", split, i});
  const picture = (item, extra = {}) => h("img", {src: item.src, alt: `${names[item.c]}, ${SPLITS[item.split]} image ${item.i}`, draggable: "false", ...extra});

  function drawImages() {
    const page = model.get("album");
    imageSplit.replaceChildren(...Object.entries(page.counts).map(([split, n]) => h("option", {value: split}, `${SPLITS[split]} (${n})`)));
    imageSplit.value = page.split;
    imageOrder.value = page.order;
    grid.replaceChildren(...page.images.map((item, j) => h("div", {role: "option", id: `dd-${uid}-i${j}`, class: "dd-image", "data-split": item.split,
      "data-i": item.i, title: short(item.path, 300), "aria-selected": "false"}, picture(item),
      item.corrected != null ? h("b", {class: "dd-badge dd-done", title: item.corrected === item.c ? "label confirmed" : "label corrected"}, item.corrected === item.c ? "✓" : "✎")
        : item.likely ? h("b", {class: "dd-badge", title: "the label may be wrong"}, "?") : null)));
    if (!page.images.length) grid.append(h("p", {class: "dd-none"}, `No ${SPLITS[page.split]} image.`));
    const more = page.of > page.images.length;
    redraw(pager, () => pager.replaceChildren(...(more ? [
      h("button", {type: "button", disabled: page.from === 0, onclick: () => send({do: "images", from: page.from - page.step})}, "‹ earlier"),
      h("span", {}, `${page.from + 1}–${page.from + page.images.length} of ${page.of}`),
      h("button", {type: "button", disabled: page.from + page.images.length >= page.of, onclick: () => send({do: "images", from: page.from + page.step})}, "later ›")] : [])));
    markCurrent();
  }

  // ------------------------------------------------------------------ candidate sentences
  const sortBy = select("Order of sentences", [], "", by => { ui.sort = by; drawSentences(); });
  const hide = h("input", {type: "checkbox", onchange: () => drawSentences()});
  const heading = h("h3", {});
  const rows = list("Candidate sentences", {class: "dd-list dd-rows"}, row => detailOf({do: "sentence", t: +row.dataset.t}),
    {a: row => markRow(row, "accepted"), r: row => markRow(row, "rejected"), s: row => markRow(row, "starred"), e: row => edit(+row.dataset.t)});
  const markRow = (row, mark) => {
    const t = +row.dataset.t, at = rows.at(), next = rows.children[at + 1];
    send({do: "mark", t, mark});
    if (next && mark !== "starred") { rows.mark(at + 1); detailOf({do: "sentence", t: +next.dataset.t}); }
  };
  const box = h("textarea", {rows: "2", placeholder: "Write a sentence of your own about this class …", "aria-label": "A sentence of your own", dir: "auto",
    oninput: () => { clearTimeout(ui.timer); ui.timer = setTimeout(tryText, 120); },
    onkeydown: event => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); addText(); } if (event.key === "Escape") edit(null); }});
  const tried = h("p", {class: "dd-tried", role: "status", "aria-live": "polite"});
  const add = h("button", {type: "button", onclick: addText}, "Add");
  const sentences = h("section", {class: "dd-panel"}, heading,
    h("div", {class: "dd-tools"}, labelled("sorted by", sortBy), h("label", {class: "dd-check"}, hide, " unusable too")), rows,
    h("p", {class: "dd-keys"}, "Keys in the list: ↑ ↓ move, A accept, R reject, S star, E edit"),
    h("div", {class: "dd-own"}, box, add), tried);
  function tryText() { send({do: "try", text: box.value, edits: ui.edits}); }
  function addText() { clearTimeout(ui.timer); if (box.value.trim()) send({do: "add", text: box.value, edits: ui.edits}); }
  function edit(t) {
    const s = t == null ? null : model.get("page").sentences.find(s => s.t === t);
    ui.edits = s ? t : null;
    box.value = s ? s.text : "";
    add.textContent = s ? "Replace" : "Add";
    tried.replaceChildren();
    if (s) { box.focus(); tryText(); }
  }

  function order(items) {
    const value = s => ui.sort === "choice" ? s.scores[model.get("bar").form] : s.scores[ui.sort];
    const by = (x, y) => (value(y) ?? -Infinity) - (value(x) ?? -Infinity) || x.t - y.t;
    if (ui.sort === "written") return items.sort((x, y) => x.t - y.t);
    if (ui.sort === "marks") return items.sort((x, y) => (y.own - x.own) || (y.mark || "").localeCompare(x.mark || "") || by(x, y));
    if (ui.sort === "choice") return items.sort((x, y) => (x.rank || Infinity) - (y.rank || Infinity) || by(x, y));
    return items.sort(by);
  }
  function drawSentences() {
    const page = model.get("page"), bar = model.get("bar"), current = facts.forms.find(f => f.form === bar.form);
    sortBy.replaceChildren(h("option", {value: "choice"}, `choice: ${current.score}`), ...facts.forms.map(f => h("option", {value: f.form}, f.score)),
      h("option", {value: "marks"}, "your marks"), h("option", {value: "written"}, "order of the file"));
    sortBy.value = ui.sort;
    const usable = page.sentences.filter(s => !s.flag || s.own), shown = order(hide.checked ? [...page.sentences] : usable);
    hide.parentElement.style.visibility = usable.length < page.sentences.length ? "visible" : "hidden";
    heading.replaceChildren("Sentences about ", bdi(short(names[page.c], 60)), h("small", {}, ` ${usable.filter(s => s.rank).length} chosen of ${usable.length}`));
    const by = facts.forms.some(f => f.form === ui.sort) ? ui.sort : bar.form;
    const most = Math.max(1e-12, ...shown.map(s => Math.abs(s.scores[by] ?? 0)));
    rows.replaceChildren(...shown.map(s => {
      const value = s.scores[by], mark = MARKS[s.mark];
      return h("div", {role: "option", id: `dd-${uid}-t${s.t}`, "data-t": s.t, "aria-selected": "false",
        class: "dd-row" + (s.rank ? " dd-chosen" : "") + (s.mark === "rejected" ? " dd-rejected" : "") + (s.flag && !s.own ? " dd-unusable" : "")},
        h("span", {class: "dd-rank", title: s.rank ? `chosen, number ${s.rank}` : "not chosen"}, s.rank ? String(s.rank) : ""),
        h("span", {class: "dd-score" + (value < 0 ? " dd-negative" : "")}, h("i", {style: `width:${value == null ? 0 : Math.max(2, 100 * Math.abs(value) / most)}%`}), h("span", {}, number(value))),
        h("span", {class: "dd-text"}, bdi(s.text)),
        h("span", {class: "dd-mark"}, s.own ? h("small", {}, "yours") : null, mark ? h("b", {title: mark[1], "aria-label": mark[1]}, mark[0]) : null));
    }));
    markCurrent();
  }
  function markCurrent() {
    const d = ui.current;
    rows.mark(d && d.do === "sentence" ? [...rows.children].findIndex(row => +row.dataset.t === d.t) : -1);
    grid.mark(d && d.do === "image" ? [...grid.children].findIndex(row => row.dataset.split === d.split && +row.dataset.i === d.i) : -1);
  }

  // ------------------------------------------------------------------ what is selected
  const detail = h("section", {class: "dd-panel dd-detail", "aria-label": "What is selected", tabindex: "-1"});
  const listOf = d => d && d.do === "image" ? grid : rows;
  const shut = () => { ui.current = null; ui.history = []; markCurrent(); send({do: "close"}); };
  detail.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    const list = listOf(ui.current);
    if (narrow.matches) shut();
    list.focus();
  });
  // On a narrow screen it is a sheet at the lower edge of the window, outside the elements that Voila and JupyterLab lay out.
  const narrow = matchMedia("(max-width: 1080px)"), sheet = h("div", {class: "dd-explore dd-sheet", "data-lm-suppress-shortcuts": "true"});
  document.body.append(sheet);
  const place = () => { if (narrow.matches) sheet.append(detail); else if (ui.mode === "class") main.append(detail); sheet.hidden = !narrow.matches || ui.mode !== "class"; };
  narrow.addEventListener("change", place);
  const leave = c => { show("class"); send({do: "class", c}); detail.focus({preventScroll: true}); };  // the comparison, for a class
  function detailOf(request, back = false) {
    if (!back && ui.current) ui.history.push(ui.current);
    ui.current = request;
    markCurrent();
    send(request);
  }
  const goBack = () => { if (ui.history.length) detailOf(ui.history.pop(), true); };
  const tile = item => h("button", {type: "button", class: "dd-tile", title: short(`${names[item.c]}: ${item.path}`, 300), onclick: () => { if (ui.mode === "compare") leave(item.c); look(item.split, item.i); }},
    picture(item), item.value == null ? null : h("span", {}, number(item.value)), item.foreign ? h("span", {class: "dd-foreign"}, bdi(short(names[item.c], 26))) : null);
  const strip = (words, hint, items) => h("div", {class: "dd-strip"}, h("h4", {title: hint}, words),
    items == null ? h("p", {class: "dd-none"}, hint) : items.length ? h("div", {class: "dd-tiles"}, items.map(tile)) : h("p", {class: "dd-none"}, "none"));
  const back = () => h("button", {type: "button", class: "dd-back", disabled: !ui.history.length, onclick: goBack}, "‹ back");
  const close = () => h("button", {type: "button", class: "dd-close", "aria-label": "Close", onclick: () => { const list = listOf(ui.current); shut(); list.focus({preventScroll: true}); }}, "×");

  function drawDetail() {
    const d = model.get("detail");
    detail.classList.toggle("dd-open", Boolean(d.kind));
    redraw(detail, () => detail.replaceChildren(...(!d.kind ? [h("p", {class: "dd-hint"}, "Click a sentence: the images that speak for it. Click an image: the sentences that speak for it, the images that teach it, and whether its label is right.")]
      : d.kind === "sentence" ? sentenceDetail(d) : imageDetail(d))));
    detail.scrollTop = 0;
  }
  function sentenceDetail(s) {
    const button = ([key, [sign, words]]) => h("button", {type: "button", class: "dd-do", "aria-pressed": String(s.mark === key),
      onclick: () => send({do: "mark", t: s.t, mark: key})}, `${sign} ${{accepted: "Accept", rejected: "Reject", starred: "Star"}[key]}`);
    const state = s.rank ? `chosen, number ${s.rank} of its class` : s.flag ? `unusable: ${s.flag}` : s.own ? "written by you; a run decides whether it is chosen" : `not chosen: ${s.why}`;
    return [h("div", {class: "dd-head"}, back(), h("h3", {}, "Sentence"), close()),
      h("p", {class: "dd-quote"}, bdi(s.text)), h("p", {class: "dd-state"}, bdi(short(names[s.c], 60)), h("br"), state, s.source ? h("small", {}, " · ", bdi(short(s.source, 40))) : null),
      h("div", {class: "dd-actions"}, Object.entries(MARKS).map(button), h("button", {type: "button", class: "dd-do", onclick: () => {
        if (model.get("page").c !== s.c) { ui.editAfter = s.t; send({do: "class", c: s.c, t: s.t}); } else edit(s.t); }}, "✎ Edit")),
      s.auc == null ? null : h("p", {class: "dd-auc"}, `An image of its class is nearer to it than one of another class in ${(100 * s.auc).toFixed(0)} of 100 cases (validation).`),
      strip("Nearest images of its class", "centred cosine to the sentence", s.near),
      strip("Nearest images of other classes", "centred cosine; they speak against it", s.others),
      strip("Images whose influence it has", s.taught_note || "training images that add most to its score: cosine times positive influence on the validation images of the class", s.taught),
      h("table", {class: "dd-scores"}, h("caption", {}, "Scores"), h("tbody", {}, facts.forms.filter(f => s.scores[f.form] != null).map(f =>
        h("tr", {title: f.meaning}, h("th", {scope: "row"}, f.score), h("td", {}, number(s.scores[f.form]))))))];
  }
  function imageDetail(d) {
    const right = select("The right class", names.map((name, c) => [c, short(name, 50)]), d.corrected != null && d.corrected >= 0 ? d.corrected : d.likely ? d.suggested : d.c, () => {});
    const label = h("div", {class: "dd-label"},
      h("p", {}, d.corrected == null ? (d.likely ? ["The label may be wrong: ", bdi(short(names[d.suggested], 50)), " fits better."] : "Nothing speaks against the label.")
        : d.corrected < 0 ? "You left the image out." : d.corrected === d.c ? "You confirmed the label." : ["You corrected the label to ", bdi(short(names[d.corrected], 50)), "."]),
      labelled("Right class", right),
      h("div", {class: "dd-actions"},
        h("button", {type: "button", class: "dd-do", onclick: () => send({do: "label", split: d.split, i: d.i, c: +right.value})}, "Correct the label"),
        h("button", {type: "button", class: "dd-do", onclick: () => send({do: "label", split: d.split, i: d.i, c: d.c})}, "Label is right"),
        h("button", {type: "button", class: "dd-do", onclick: () => send({do: "label", split: d.split, i: d.i, c: -1})}, "Leave out"),
        d.corrected != null ? h("button", {type: "button", class: "dd-do", onclick: () => send({do: "label", split: d.split, i: d.i, c: null})}, "Undo") : null));
    return [h("div", {class: "dd-head"}, back(), h("h3", {}, "Image"), close()),
      h("div", {class: "dd-one"}, h("img", {class: "dd-large", src: d.large, alt: `${names[d.c]}, ${SPLITS[d.split]} image ${d.i}`}),
        h("p", {}, "Label: ", h("b", {}, bdi(short(names[d.c], 60))), h("br"), "Chosen sentences say: ", h("b", {}, bdi(short(d.predicted == null ? "–" : names[d.predicted], 60))),
          h("br"), h("small", {}, `${SPLITS[d.split]} image · `, bdi(short(d.path, 120))))),
      label,
      h("div", {class: "dd-strip"}, h("h4", {}, "Sentences that speak for it"), h("ol", {class: "dd-for"}, d.sentences.map(s => h("li", {},
        h("button", {type: "button", class: s.c === d.c ? "" : "dd-foreign", onclick: () => detailOf({do: "sentence", t: s.t})},
          h("span", {}, number(s.value)), h("span", {}, bdi(short(s.text, 160)), s.c === d.c ? null : h("small", {}, " (", bdi(short(names[s.c], 40)), ")"))))))),
      ...(d.why ? [decision(d.why)] : []),
      strip("Training images that teach it", d.influence_note || "proponents: highest influence on the loss of this image", d.proponents),
      strip("Training images that mislead", "opponents: lowest influence on the loss of this image", d.opponents)];
  }

  function decision(why) {
    const signed = value => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
    const row = s => h("li", {}, h("button", {type: "button", onclick: () => detailOf({do: "sentence", t: s.t})}, h("span", {}, signed(s.part)),
      h("span", {}, bdi(short(s.text, 160)), h("small", {}, ` ${s.score > 0 ? "fits" : "does not fit"}, about `, bdi(short(s.about, 60))))));
    return h("div", {class: "dd-strip"}, h("h4", {title: "Parts of sentences in the decision of a second classifier, which decides each class by at most five of the chosen sentences"}, "Sentences that decide"),
      h("p", {class: "dd-none"}, "A classifier on sentences calls it ", bdi(short(names[why.called], 50)), ` (${percent(why.confidence)}). What speaks for it (+), and for `,
        bdi(short(names[why.against], 50)), ` (${percent(why.against_confidence)}) (−):`),
      why.sentences.length ? h("ol", {class: "dd-for"}, why.sentences.map(row)) : h("p", {class: "dd-none"}, "no sentence"));
  }

  // ------------------------------------------------------------------ two classes
  const comparison = h("div", {class: "dd-compare-page", tabindex: "-1"});
  function drawComparison() {
    const pair = model.get("pair");
    if (pair.a == null) return;
    ui.other = pair.b;
    const choice = select("Compare with", names.map((name, c) => [c, short(name)]).filter(([c]) => c !== pair.a), pair.b, c => send({do: "compare", a: pair.a, b: +c}));
    const side = (s, other) => h("section", {class: "dd-panel"}, h("h3", {}, bdi(short(names[s.c], 60))),
      h("div", {class: "dd-tiles"}, s.images.map(tile)), h("h4", {}, "What separates it from ", bdi(short(names[other], 40))),
      s.note ? h("p", {class: "dd-none"}, s.note) : h("ol", {class: "dd-for"}, s.texts.map(t => h("li", {}, h("button", {type: "button",
        onclick: () => { leave(s.c); detailOf({do: "sentence", t: t.t}); }},
        h("span", {class: "dd-percent", title: "an image of this class is nearer to it than one of the other (validation)"}, t.auc == null ? "–" : `${Math.round(100 * t.auc)} %`),
        h("span", {}, bdi(short(t.text, 200)), t.separates ? null : h("small", {}, " (not beyond chance)")))))));
    redraw(comparison, () => comparison.replaceChildren(
      h("div", {class: "dd-tools"}, labelled("Compare with", choice), h("span", {class: "dd-hint"}, pair.confusion == null ? "" : `taken for each other with mean probability ${percent(pair.confusion)} (validation)`)),
      h("div", {class: "dd-pairs"}, h("span", {}, "Most confused:"), facts.pairs.map(p => h("button", {type: "button", "aria-pressed": String((p.a === pair.a && p.b === pair.b) || (p.a === pair.b && p.b === pair.a)),
        onclick: () => { send({do: "class", c: p.a}); send({do: "compare", a: p.a, b: p.b}); }}, bdi(short(names[p.a], 24)), " / ", bdi(short(names[p.b], 24))))),
      h("div", {class: "dd-two"}, side(pair.of_a, pair.b), side(pair.of_b, pair.a)),
      h("p", {class: "dd-keys"}, "Percentages: how often a validation image of the class is nearer to the sentence than one of the other class; 50 % is chance.")));
  }

  // ------------------------------------------------------------------ what changed
  function drawBar() {
    const bar = model.get("bar");
    form.value = bar.wanted.form;
    k.value = String(bar.wanted.top_k);
    accuracy.replaceChildren(h("b", {}, bar.ready ? percent(bar.accuracy) : "…"), h("span", {}, bar.ready ? bar.accuracy == null ? "not measured" : "held-out accuracy" : "choosing and measuring"),
      h("small", {}, `class names alone ${percent(bar.names_accuracy)}`));
    accuracy.title = "Zero-shot accuracy on the validation images, each classified by sentences that were chosen without it. Test images are not used.";
    save.setAttribute("aria-disabled", String(!bar.unsaved));  // not disabled: it would lose the focus
    save.textContent = bar.unsaved ? `Save ${counted(bar.unsaved, "change")}` : "Saved";
    message.className = "dd-message" + (bar.error ? " dd-error" : "");
    message.replaceChildren(bdi(bar.message || ""));
    if (bar.command) message.append(h("code", {tabindex: "0", "aria-label": "Command"}, bar.command));
    if (bar.conflict) message.append(
      h("button", {type: "button", class: "dd-do", onclick: () => send({do: "reload"})}, "Read them, drop mine"),
      h("button", {type: "button", class: "dd-do", onclick: () => send({do: "save", overwrite: true})}, "Write mine over them"));
    tried.replaceChildren();
    const tr = bar.tried;
    if (tr) tried.append(tr.note ? tr.note : `${tr.score_name} ${number(tr.score)}: rank ${tr.rank} among ${tr.among}. Added to the chosen ones it would ${tr.marginal > 0 ? "lower" : "raise"} the loss by ${number(Math.abs(tr.marginal))} nats.`,
      tr.flag ? ` Note: ${tr.flag}.` : "");
    if (bar.added && bar.added !== ui.added) { ui.added = bar.added; edit(null); }
  }
  const saw = h("span", {hidden: true});
  root.append(saw);
  const draw = {bar: drawBar, album: drawImages, detail: drawDetail, pair: drawComparison};
  for (const [name, f] of Object.entries(draw)) model.on(`change:${name}`, f);
  model.on("change:page", () => {
    const page = model.get("page");
    classes.value = String(page.c);
    if (page.c !== ui.c) { ui.c = page.c; ui.other = null; rows.scrollTop = grid.scrollTop = 0; edit(null); }
    if (page.show) ui.current = {do: "sentence", t: page.show};
    drawSentences();
    if (ui.editAfter != null) { edit(ui.editAfter); ui.editAfter = null; }
  });
  model.on("change:bar", () => { if (ui.form !== model.get("bar").form) { ui.form = model.get("bar").form; drawSentences(); } });
  model.on("change:done", () => { const done = model.get("done"); saw.dataset.done = done; if (done >= ui.seq) root.setAttribute("aria-busy", "false"); });
  const warn = event => { if (model.get("bar").unsaved) event.preventDefault(); };
  addEventListener("beforeunload", warn);

  ui.c = model.get("page").c;
  ui.form = model.get("bar").form;
  ui.seq = model.get("done");
  show("class"); drawBar(); drawImages(); drawSentences(); drawDetail();
  classes.value = String(ui.c);
  root.dataset.ready = "true";
  send({do: "hello"});
  return () => { removeEventListener("beforeunload", warn); narrow.removeEventListener("change", place); sheet.remove(); };
}
export default {render};
