/* Shows what the page holds under the pointer; without it every figure is still in the text and in the titles of signs and bars. */
(() => {
  const tip = document.getElementById("tip"), root = document.documentElement;
  const iso = (t) => new Date(t * 1e3).toISOString().slice(0, 19).replace("T", " ") + " UTC";
  const hide = () => { tip.className = ""; };
  const show = (event, words) => {
    tip.textContent = words;
    tip.className = "on";
    const x = Math.max(4, Math.min(event.pageX + 14, root.clientWidth - tip.offsetWidth - 6));
    root.style.setProperty("--x", x + "px");
    root.style.setProperty("--y", event.pageY + 14 + "px");
  };
  const place = (svg, event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  const follow = (name, words) => document.querySelectorAll(`svg[data-${name}]`).forEach((svg) => {
    const data = JSON.parse(svg.dataset[name]);
    svg.addEventListener("pointermove", (event) => {
      const said = words(data, ...place(svg, event));
      said ? show(event, said) : hide();
    });
    svg.addEventListener("pointerleave", hide);
  });
  follow("hover", ({ f: [first, last, low, high], n: names, u: unit, r: rows }, x) => {
    if (x < first || x > last || !rows.length) return null;
    const at = low + ((x - first) / (last - first)) * (high - low);
    const near = rows.reduce((best, row) => (Math.abs(row[0] - at) < Math.abs(best[0] - at) ? row : best));
    const values = names.map((name, i) => near[i + 1] == null ? null : `${name}: ${near[i + 1].toLocaleString("en")} ${unit}`);
    return [iso(near[0]), ...values.filter(Boolean)].join("\n");
  });
  follow("heat", ({ f: [left, right, top, height], c: columns, t: first, s: seconds, n: names }, x, y) => {
    const column = Math.floor(((x - left) / (right - left)) * columns), row = Math.floor((y - top) / height);
    if (column < 0 || column >= columns || row < 0 || row >= names.length) return null;
    return `${names[row]}\n${iso(first + column * seconds)}`;
  });
})();
