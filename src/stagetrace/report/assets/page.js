(() => {
  const { make, visible, legible, preview, isPicture } = examples;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const STEP = { harmful: 12, helpful: 12, queries: 12 };
  const shown = { ...STEP };
  const found = { harmful: [], helpful: [], queries: [] };

  const isLong = (item) => !isPicture(item);

  const heading = (level, title, label) => {
    const head = make(level, "title", title);
    if (label) {
      const name = make("span", "class");
      name.append("class ", legible(make("bdi"), label));
      head.append(name);
    }
    return head;
  };
  const pairs = (list) => {
    const node = make("dl", "effect");
    for (const [name, value, className, word] of list) {
      const pair = make("div");
      const said = legible(make("dd", className), value);
      if (word) said.append(make("span", "word", " " + word));
      pair.append(make("dt", "", name), said);
      node.append(pair);
    }
    return node;
  };

  // Rows whose examples look the same, as one: [[row, row, ...], ...], each at the place of its first.
  const grouped = (rows) => {
    const groups = [];
    const known = new Map();
    for (const row of rows) {
      const look = (data.previews[row.stage + ":" + row.index] || {}).same;
      const group = look === undefined ? undefined : known.get(look);
      if (group) {
        group.push(row);
      } else {
        groups.push([row]);
        if (look !== undefined) known.set(look, groups[groups.length - 1]);
      }
    }
    return groups;
  };
  const range = (group, what) => {
    const ends = [...new Set([group[0][what], group[group.length - 1][what]])];
    return ends.join(" to ");
  };

  const example = (group) => {
    const row = group[0];
    const item = data.previews[row.stage + ":" + row.index];
    const node = make("li", isLong(item) ? "item long" : "item");
    const said = make("div");
    const harmful = row.score > 0;
    said.append(heading("h4", "#" + row.index, item && item.label));
    if (group.length > 1) {
      const more = make("details", "alike");
      more.append(make("summary", "", group.length + " examples that look the same"));
      const called = (each) => "#" + each.index + (each.id ? " " + visible(each.id) : "") + " (" + each.said + ")";
      more.append(make("p", "", group.map(called).join(", ")));
      said.append(more);
    }
    const list = [
      ...(row.id ? [["id", visible(row.id)]] : []),
      ["score", range(group, "said") + (harmful ? " ▲" : " ▽"), "score", harmful ? "harmful" : "helpful"],
      [group.length > 1 ? "if one is removed" : "if removed", range(group, "removal"), "", harmful ? "(helps)" : "(hurts)"],
      ["percentile", range(group, "percentile")],
    ];
    if (row.parts) list.push(["via shared", row.parts[0]], ["via head", row.parts[1]]);
    said.append(pairs(list));
    const picture = preview(item, "example " + row.index, data.heat[[row.stage, row.index, row.query ?? ""].join(":")]);
    if (picture) node.append(picture);
    node.append(said);
    return node;
  };
  const question = (item, button) => {
    const node = make("li", isLong(item) ? "item long" : "item");
    const said = make("div");
    said.append(heading("h3", "query #" + item.index, item.label));
    const list = [];
    if (item.prediction) list.push(["prediction", item.prediction]);
    if (item.loss) list.push(["loss", item.loss]);
    said.append(pairs(list));
    if (button && data.each) {
      const trace = make("button", "copy", "Show its examples");
      trace.type = "button";
      trace.setAttribute("aria-label", "Show the examples behind query " + item.index);
      trace.addEventListener("click", () => {
        byId("f-query").value = String(item.index);
        update();
        byId("examples-title").scrollIntoView();
        byId("f-query").focus({ preventScroll: true });
      });
      said.append(trace);
    }
    const picture = preview(item, "query " + item.index);
    if (picture) node.append(picture);
    node.append(said);
    return node;
  };

  const draw = (side, build, from) => {
    const list = byId(side);
    if (!list) return;
    if (!from) list.replaceChildren();
    if (side !== "queries") {
      const pictured = ([row]) => isPicture(data.previews[row.stage + ":" + row.index]);
      list.classList.toggle("pictures", found[side].every(pictured));
    }
    found[side].slice(from, shown[side]).forEach((each) => list.append(build(each)));
    if (!found[side].length) list.append(make("li", "empty", "None here."));
    const more = document.querySelector('.more[data-side="' + side + '"]');
    more.hidden = found[side].length <= shown[side];
  };
  const builders = { harmful: example, helpful: example, queries: (item) => question(item, true) };

  const words = new Map();
  const searched = (row) => {
    const key = row.stage + ":" + row.index;
    if (!words.has(key)) {
      const item = data.previews[key] || {};
      const cells = [...(item.fields || []).flat(), ...(item.turns || []).flatMap((turn) => [turn.part, turn.role, turn.text])];
      words.set(key, ["#" + row.index, row.id, item.label, item.text, ...cells].filter(Boolean).join("\n").toLowerCase());
    }
    return words.get(key);
  };
  const labelOf = (row) => (data.previews[row.stage + ":" + row.index] || {}).label || "";
  const ORDERS = {
    size: (a, b) => Math.abs(b.score) - Math.abs(a.score),
    index: (a, b) => a.index - b.index,
    class: (a, b) => labelOf(a).localeCompare(labelOf(b)) || Math.abs(b.score) - Math.abs(a.score),
  };

  const option = (select, value, text) => {
    const node = make("option", "", visible(text));
    node.value = value;
    select.append(node);
  };
  const classes = () => {
    const stage = Number(byId("f-stage").value);
    const before = byId("f-class").value;
    const labels = [...new Set(data.rows.filter((row) => row.stage === stage).map(labelOf))].filter(Boolean).sort();
    byId("f-class").replaceChildren();
    option(byId("f-class"), "", "all");
    labels.forEach((label) => option(byId("f-class"), label, label));
    byId("f-class").value = labels.includes(before) ? before : "";
    byId("l-class").hidden = labels.length < 2 || labels.length > 200;
  };

  const update = () => {
    const stage = Number(byId("f-stage").value);
    const query = byId("f-query").value === "" ? null : Number(byId("f-query").value);
    const label = byId("f-class").value;
    const text = byId("f-text").value.trim().toLowerCase();
    const rows = data.rows.filter(
      (row) =>
        row.stage === stage && row.query === query && (!label || labelOf(row) === label) &&
        (!text || (/^#\d+$/.test(text) ? "#" + row.index === text : searched(row).includes(text))),
    );
    rows.sort(ORDERS[byId("f-sort").value]);
    found.harmful = grouped(rows.filter((row) => row.score > 0));
    found.helpful = grouped(rows.filter((row) => row.score < 0));
    for (const side of ["harmful", "helpful"]) {
      shown[side] = STEP[side];
      draw(side, builders[side], 0);
    }
    const alone = query === null && data.queries.length === 1;
    const asked = alone ? data.queries[0] : data.queries.find((item) => item.index === query);
    byId("asked").replaceChildren();
    if (asked) {
      const list = make("ul", "list");
      list.append(question(asked, false));
      byId("asked").append(list);
    }
    const what = query === null ? "the whole query" : "query #" + query;
    byId("status").textContent =
      found.harmful.flat().length + " harmful and " + found.helpful.flat().length + " helpful examples of stage " +
      visible(data.stages[stage]) + ", ranked for " + what + "." +
      ([...found.harmful, ...found.helpful].some((group) => group.length > 1) ? " Examples that look the same are one entry." : "");
  };

  const copy = async (button) => {
    const rows = found[button.dataset.side].flat();
    const text = rows.map((row) => row.index).join(", ");
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // a file opened from disk may have no clipboard: the older way, through a selection
      const area = make("textarea", "", text);
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    const count = rows.length;
    byId("status").textContent = done ? count + " indices are on the clipboard." : "The browser refused to copy: " + text;
  };

  data.stages.forEach((name, place) => option(byId("f-stage"), String(place), name));
  option(byId("f-query"), "", "all together");
  const ranked = new Set(data.rows.map((row) => row.query));
  data.queries.filter((item) => ranked.has(item.index)).forEach((item) => {
    option(byId("f-query"), String(item.index), "#" + item.index + (item.loss ? ", loss " + item.loss : ""));
  });
  byId("l-query").hidden = byId("f-query").options.length < 2;
  classes();

  byId("f-stage").addEventListener("change", () => { classes(); update(); });
  for (const id of ["f-query", "f-class", "f-sort"]) byId(id).addEventListener("change", update);
  byId("f-text").addEventListener("input", update);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll("button.copy[data-side]").forEach((button) => button.addEventListener("click", () => copy(button)));
  document.querySelectorAll(".more").forEach((button) =>
    button.addEventListener("click", () => {
      const side = button.dataset.side;
      const from = shown[side];
      shown[side] += 4 * STEP[side];
      draw(side, builders[side], from);
      const first = byId(side).children[from];
      if (first) { first.tabIndex = -1; first.focus(); }
    }),
  );

  found.queries = [...data.queries].sort((a, b) => (b.value || 0) - (a.value || 0));
  draw("queries", builders.queries, 0);
  update();
})();
