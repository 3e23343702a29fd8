// A cursor on every chart: pointer, touch or arrow keys show the values at one place.
document.querySelectorAll("figure[data-chart]").forEach((figure) => {
  const data = JSON.parse(figure.dataset.chart);
  const [left, right, , bottom, width, height, low, high] = data.frame;
  const svg = figure.querySelector("svg");
  const places = [...new Set(data.series.flatMap(([, xs]) => xs))].sort((a, b) => a - b);
  const scale = data.log ? Math.log : (v) => v;
  const span = scale(high) - scale(low);
  const toX = (v) => left + (span ? (scale(v) - scale(low)) / span : 0.5) * (width - left - right);
  let at = -1, line, tip;
  const hide = () => { line?.remove(); tip?.remove(); line = tip = undefined; };
  const show = (index) => {
    at = Math.max(0, Math.min(places.length - 1, index));
    const value = places[at], x = toX(value);
    if (!line) {
      line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("class", "cursor");
      svg.append(line);
      tip = document.createElement("div");
      tip.className = "tip";
      tip.setAttribute("aria-live", "polite");
      figure.append(tip);
    }
    line.setAttribute("d", `M${x} 6V${height - bottom}`);
    const rows = data.series.map(([name, xs, ys]) => [name, ys[xs.indexOf(value)]]).filter(([, y]) => y !== undefined);
    tip.replaceChildren();
    [[data.label, String(Math.round(value * 10) / 10)], ...rows].forEach(([name, text]) => {
      const row = document.createElement("div");
      row.textContent = `${name}: ${text}`;
      tip.append(row);
    });
    const box = svg.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const middle = box.left - outer.left + (x / width) * box.width;
    tip.style.top = `${box.top - outer.top + 2}px`;
    tip.style.left = `${Math.max(4, Math.min(outer.width - tip.offsetWidth - 6, middle - tip.offsetWidth / 2))}px`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    let best = 0;
    places.forEach((v, i) => { if (Math.abs(toX(v) - x) < Math.abs(toX(places[best]) - x)) best = i; });
    show(best);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (move === undefined) return;
    event.preventDefault();
    show(move);
  });
});
