"use strict";
// What one example looks and sounds like. `page.js` puts these into its lists.
const examples = (() => {
  // All that comes from a data set goes through these two: it becomes text, never markup.
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // Characters that are not seen, or act: direction marks, controls, zero-width spaces, tags (joiners belong to scripts and emoji).
  const ACTING = /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e0fff}])/u;
  const codeOf = (character) => "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  // The same for places that hold no markup: names in menus, words read aloud.
  const visible = (text) => text.split(ACTING).map((part, place) => (place % 2 ? "[" + codeOf(part) + "]" : part)).join("");
  const legible = (node, text) => {
    text.split(ACTING).forEach((part, place) => {
      if (place % 2) {
        node.append(make("span", "hidden-character", codeOf(part)));
      } else if (part) {
        node.append(part);
      }
    });
    return node;
  };

  // The text of an example with its tokens coloured by their scores, and the strongest of them in words.
  const valueOf = (said) => Number(said.replaceAll("\u2212", "-"));
  const heated = (item, heat) => {
    const text = make("p", "text");
    text.dir = "auto";
    text.lang = "";
    text.tabIndex = 0;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "text of the example, its tokens coloured by their scores");
    const said = new Map(heat.at.map((position, place) => [position, heat.said[place]]));
    const largest = Math.max(...heat.said.map((each) => Math.abs(valueOf(each))), 0);
    item.pieces.forEach((piece, position) => {
      const value = said.has(position) ? valueOf(said.get(position)) : 0;
      const strength = largest ? Math.ceil((4 * Math.abs(value)) / largest) : 0;
      const node = legible(make("span", strength ? "token " + (value > 0 ? "harmful" : "helpful") + " h" + strength : ""), piece);
      if (said.has(position)) node.title = said.get(position);
      text.append(node);
    });
    const box = make("div");
    box.append(text);
    const beyond = heat.at.filter((position) => position >= item.pieces.length).length;
    if (beyond) box.append(make("p", "cut", beyond.toLocaleString("en") + " more tokens are not shown"));
    const strongest = [...heat.at.keys()].filter((place) => heat.at[place] < item.pieces.length).sort((a, b) => Math.abs(valueOf(heat.said[b])) - Math.abs(valueOf(heat.said[a])));
    const list = strongest.slice(0, 5).map((place) => "\u201c" + visible(item.pieces[heat.at[place]].trim()) + "\u201d " + heat.said[place]);
    if (list.length) box.append(make("p", "cut", "Largest token scores (query loss, + harmful): " + list.join(", ")));
    if (heat.rest) box.append(make("p", "cut", "Tokens whose scores were not kept: " + heat.rest + " in sum"));
    return box;
  };

  const pictures = (item) => {
    const box = make("div", "media");
    item.images.forEach((address, place) => {
      const image = make("img", "thumb");
      image.src = address;
      // a small picture keeps its pixels apart, a photograph does not
      image.addEventListener("load", () => image.classList.toggle("photograph", Math.max(image.naturalWidth, image.naturalHeight) > 64));
      const which = item.images.length > 1 ? "picture " + (place + 1) + " of " + item.images.length + " of the example" : "example";
      image.alt = which + (item.label ? " of class " + visible(item.label) : "");
      box.append(image);
    });
    return box;
  };

  // A sound: its outline, the browser's own player, and how much of it can be heard.
  const drawn = (sound) => {
    const space = "http://www.w3.org/2000/svg";
    const wave = document.createElementNS(space, "svg");
    wave.setAttribute("class", "wave");
    wave.setAttribute("viewBox", sound.box);
    wave.setAttribute("preserveAspectRatio", "none");
    wave.setAttribute("role", "img");
    wave.setAttribute("aria-label", "outline of the sound, " + sound.heard);
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", sound.outline);
    wave.append(path);
    return wave;
  };
  const heard = (sound, what) => {
    const box = make("figure", "sound");
    const player = make("audio");
    player.controls = true;
    player.preload = "metadata";
    player.src = sound.address;
    const name = sound.name ? visible(sound.name) + ", " : "";
    player.setAttribute("aria-label", "sound of " + what + ", " + name + sound.heard);
    const said = make("figcaption", "cut");
    if (sound.name) said.append(legible(make("bdi"), sound.name), ": ");
    said.append(sound.heard);
    box.append(drawn(sound), player, said);
    return box;
  };
  document.addEventListener("play", (event) => {
    document.querySelectorAll("audio").forEach((each) => { if (each !== event.target) each.pause(); });
  }, true);

  // Text that may be longer than its box, which the keyboard can then scroll.
  const scrolled = (node, label) => {
    node.tabIndex = 0;
    node.setAttribute("aria-label", label);
    return node;
  };
  const written = (text) => {
    const node = scrolled(legible(make("p", "text"), text), "text of the example");
    node.dir = "auto";
    node.lang = "";
    node.setAttribute("role", "group");
    return node;
  };
  const cutAfter = (count) => make("p", "cut", count.toLocaleString("en") + " more characters are not shown");
  const spoken = (turns) => {
    const list = scrolled(make("ol", "turns"), "conversation, turn by turn");
    for (const turn of turns) {
      const item = make("li", "turn");
      if (turn.part || turn.role) {
        const who = make("p", "who");
        if (turn.part) who.append(legible(make("bdi", "part"), turn.part), " ");
        if (turn.role) who.append(legible(make("bdi"), turn.role));
        item.append(who);
      }
      const text = legible(make("p", "said"), turn.text || "");
      text.dir = "auto";
      text.lang = "";
      item.append(text);
      if (turn.cut) item.append(cutAfter(turn.cut));
      list.append(item);
    }
    return list;
  };
  const tabled = (fields) => {
    const table = make("table", "fields");
    for (const [name, value] of fields) {
      const row = table.insertRow();
      const head = legible(make("th"), name);
      head.scope = "row";
      head.dir = "auto";
      const cell = legible(make("td"), value);
      cell.dir = "auto";
      row.append(head, cell);
    }
    return table;
  };

  // One picture, and nothing to read or hear: such examples stand side by side.
  const isPicture = (item) =>
    Boolean(item && item.images && item.images.length === 1 && item.kind === "image" && !item.text && !item.fields && !item.more);

  // All of an example that was kept; `what` names it to those who hear the page.
  const preview = (item, what, heat) => {
    if (!item) return null;
    const isHeated = heat && item.pieces;
    const whole = make("div", "shown");
    if (item.images) whole.append(pictures(item));
    const isBeside = item.images && item.images.length === 1 && !isPicture(item);
    const box = isBeside ? make("div", "shown") : whole;
    if (isBeside) {
      whole.classList.add("beside");
      whole.append(box);
    }
    for (const sound of item.sounds || []) box.append(heard(sound, what));
    if (isHeated) {
      box.append(heated(item, heat));
    } else if (item.turns) {
      box.append(spoken(item.turns));
    } else if (item.text || item.kind === "text") {
      const text = make("div");
      text.append(written(item.text || ""));
      if (item.cut) text.append(cutAfter(item.cut));
      box.append(text);
    }
    if (item.fields) box.append(tabled(item.fields));
    for (const words of item.more || []) box.append(make("p", "cut", visible(words)));
    return whole.childElementCount ? whole : null;
  };
  return { make, visible, legible, preview, isPicture };
})();
