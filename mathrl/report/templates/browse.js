// The list of completions: filters, and one page of problems at a time, so that many thousand open at once.
(() => {
  const data = JSON.parse(document.getElementById("completions").textContent);
  const form = document.getElementById("filters"), items = document.getElementById("items");
  const previous = document.getElementById("previous"), next = document.getElementById("next");
  const PER_PAGE = 20;
  let page = 0, found = [];

  const options = (name, rows) => {
    form.elements[name].replaceChildren(...rows.map(([value, text]) => new Option(text, value)));
  };
  const seen = new Map(), kinds = new Set();
  let changed = false;
  data.sets.forEach((set) => set.problems.forEach(([, , , meta, change, completions]) => {
    meta.forEach((kind) => kinds.add(kind));
    changed ||= Boolean(change);
    completions.forEach(([outcome]) => seen.set(outcome, (seen.get(outcome) || 0) + 1));
  }));
  options("set", [["", "all"], ...data.sets.map((set, i) => [i, set.name])]);
  options("outcome", [["", "all"], ...[...seen].map(([o, n]) => [o, `${data.outcomes[o] || o} (${n.toLocaleString("en")})`])]);
  options("meta", [["", "all"], ...[...kinds].sort((a, b) => a.localeCompare(b, "en", { numeric: true })).map((k) => [k, k])]);
  if (!kinds.size) form.elements.meta.closest("label").hidden = true;
  if (!changed) form.querySelector("[data-change]").hidden = true;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const search = () => {
    const want = Object.fromEntries(["set", "outcome", "kind", "meta", "change"].map((n) => [n, form.elements[n].value]));
    const text = form.elements.text.value.toLowerCase();
    found = [];
    let count = 0;
    data.sets.forEach((set, s) => {
      if (want.set !== "" && Number(want.set) !== s) return;
      set.problems.forEach((problem) => {
        const [id, question, answer, meta, change, completions] = problem;
        if (want.meta && !meta.includes(want.meta)) return;
        if (want.change && change !== want.change) return;
        const inProblem = !text || `${id}\n${question}\n${answer}`.toLowerCase().includes(text);
        const kept = completions.map((c, i) => [c, i]).filter(([c, i]) =>
          (!want.outcome || c[0] === want.outcome)
          && (want.kind !== "greedy" || i === 0) && (want.kind !== "sample" || i > 0) && (want.kind !== "truncated" || c[4])
          && (inProblem || c[1].toLowerCase().includes(text)));
        if (kept.length) { found.push([set, problem, kept]); count += kept.length; }
      });
    });
    page = 0;
    document.getElementById("count").dataset.found = count;
    draw();
  };

  const completion = ([outcome, text, extracted, tokens, truncated, detail], title) => {
    const article = element("article");
    const header = element("header");
    header.append(element("span", "", title), element("span", `chip ${outcome}`, data.outcomes[outcome] || outcome));
    const told = [extracted === null ? "no answer read" : `read: ${extracted}`, `${tokens} tokens`];
    if (truncated) told.push("cut off");
    if (detail) told.push(detail);
    article.append(header, element("pre", "", text), element("small", "", told.join(" · ")));
    return article;
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    items.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(([set, problem, kept]) => {
      const [id, question, answer, meta, change, , before] = problem;
      const item = element("div", "item"), chips = element("div", "chips");
      chips.append(element("small", "", `${set.name === id.split("/")[0] ? "" : `${set.name} `}${id}`));
      meta.forEach((kind) => chips.append(element("span", "chip plain", kind)));
      if (change) chips.append(element("span", `chip ${change === "right" ? "good" : "bad"}`, `newly ${change}`));
      const strip = element("div", "strip");
      strip.tabIndex = 0;
      if (before) strip.append(completion(before, "greedy before"));
      strip.append(...kept.map(([c, i]) => completion(c, i ? `sample ${i}` : before ? "greedy now" : "greedy")));
      const reference = element("p", "note", "Reference answer: ");
      reference.append(element("b", "", answer));
      item.append(chips, element("p", "q", question), reference, strip);
      return item;
    }));
    const count = document.getElementById("count");
    count.textContent = found.length
      ? `${Number(count.dataset.found).toLocaleString("en")} completions of ${found.length.toLocaleString("en")} problems, page ${page + 1} of ${pages}`
      : "nothing fits these filters";
    previous.disabled = page === 0;
    next.disabled = page + 1 >= pages;
  };

  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  search();
})();
