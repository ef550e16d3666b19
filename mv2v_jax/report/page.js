"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("data").textContent);
  const colors = ["#b2182b", "#d6604d", "#f4a582", "#c9c9c9", "#92c5de", "#4393c3", "#2166ac"];
  const notes = {
    before: "each space in its own two strongest directions: nothing is matched yet",
    null: "mapped rows after a reflection: every variance is kept, the geometry is broken",
    after: "rows of X under this map, in the two strongest directions of Y",
  };
  const most = 50, step = 20;
  const judged = new Map();
  let view = "random", numRandom = Math.min(step, rows.length), selected = [];

  // A fixed shuffle, so that everybody who opens the page judges the same sample.
  const shuffled = rows.map((_, place) => place);
  let state = 12345;
  for (let last = shuffled.length - 1; last > 0; last--) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    const other = Math.floor(state / 0x80000000 * (last + 1));
    [shuffled[last], shuffled[other]] = [shuffled[other], shuffled[last]];
  }
  const sure = (place) => (rows[place].agreement ?? 0) + rows[place].near[0].cosine / 1000;
  const bySure = rows.map((_, place) => place).sort((a, b) => sure(b) - sure(a));

  function chosen() {
    const query = document.getElementById("search").value.trim().toLowerCase();
    if (query) {
      const found = (row) => `${row.row} ${row.text ?? ""} ${row.region} ` + row.near.map((near) => `${near.row} ${near.text ?? ""}`).join(" ");
      return rows.map((_, place) => place).filter((place) => found(rows[place]).toLowerCase().includes(query));
    }
    if (view === "selected") return selected;
    if (view === "surest") return bySure.slice(0, 10);
    if (view === "shakiest") return bySure.slice(-10).reverse();
    return shuffled.slice(0, numRandom);
  }

  function element(name, text, parent) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function show() {
    const places = chosen(), body = document.querySelector("#rows tbody");
    body.replaceChildren();
    for (const place of places.slice(0, most)) {
      const row = rows[place], line = element("tr", undefined, body);
      line.dataset.row = row.row;
      const own = element("td", row.text ?? `row ${row.row}`, line);
      if (row.text !== null) element("small", ` (row ${row.row})`, own);
      const list = element("ol", undefined, element("td", undefined, line));
      for (const near of row.near) {
        const item = element("li", near.text ?? `row ${near.row}`, list);
        element("small", ` ${near.cosine.toFixed(3)}`, item);
      }
      const agreement = element("td", undefined, line);
      if (row.agreement === null) agreement.textContent = "unknown";
      else {
        element("span", undefined, agreement).className = "dot";
        agreement.firstChild.style.background = colors[Math.min(6, Math.floor(row.agreement * 7))];
        agreement.append(`${Math.round(100 * row.agreement)} %`);
      }
      element("td", row.margin.toFixed(3), line);
      const judge = element("td", undefined, line);
      for (const name of ["right", "wrong"]) {
        const button = element("button", name, judge);
        button.type = "button";
        button.className = name;
        button.setAttribute("aria-pressed", judged.get(place) === name);
        button.addEventListener("click", () => {
          if (judged.get(place) === name) judged.delete(place); else judged.set(place, name);
          show();
        });
      }
    }
    const count = Math.min(places.length, most);
    document.getElementById("shown").textContent = `${count} of ${places.length} rows` + (view === "selected" && !places.length ? ": draw around points in the picture above" : "");
    for (const tab of document.querySelectorAll("#tabs [role=tab]")) tab.setAttribute("aria-selected", tab.dataset.view === view);
    document.getElementById("more").hidden = view !== "random" || numRandom >= Math.min(rows.length, most);
    showPrecision();
  }

  // Wilson's interval. Only rows of the random sample count: the surest and the shakiest would bias it.
  function showPrecision() {
    const marks = shuffled.slice(0, numRandom).map((place) => judged.get(place)).filter(Boolean);
    const total = marks.length, place = document.getElementById("precision");
    if (!total) { place.textContent = "Judge random rows by the buttons, and the precision appears here."; return; }
    const share = marks.filter((mark) => mark === "right").length / total, z = 1.96, z2 = z * z / total;
    const middle = (share + z2 / 2) / (1 + z2), half = z * Math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2);
    const percent = (value) => Math.round(100 * Math.min(1, Math.max(0, value)));
    place.textContent = `Precision: ${percent(share)} % of ${total} judged random rows are right (95 % interval: ${percent(middle - half)} to ${percent(middle + half)} %).`;
  }

  function switchTo(name) {
    for (const side of ["cloud_x", "cloud_y"]) {
      const source = Bokeh.documents.map((one) => one.get_model_by_name(side)).find(Boolean);
      source.data = { ...source.data, now_0: source.data[`${name}_0`], now_1: source.data[`${name}_1`] };
    }
    for (const button of document.querySelectorAll("#switch button")) button.setAttribute("aria-checked", button.dataset.cloud === name);
    document.getElementById("switch-note").textContent = notes[name];
  }

  for (const button of document.querySelectorAll("#switch button")) button.addEventListener("click", () => switchTo(button.dataset.cloud));
  for (const tab of document.querySelectorAll("#tabs [role=tab]")) tab.addEventListener("click", () => {
    view = tab.dataset.view;
    document.getElementById("search").value = "";
    show();
  });
  document.getElementById("more").addEventListener("click", () => { numRandom = Math.min(numRandom + step, rows.length, most); show(); });
  document.getElementById("search").addEventListener("input", show);
  window.addEventListener("rows-selected", (event) => {
    selected = event.detail;
    view = selected.length ? "selected" : "random";
    document.getElementById("search").value = "";
    show();
  });
  document.getElementById("switch-note").textContent = notes.after;
  show();
})();
