// The part of Markdown that models write, as DOM nodes. Text only ever becomes text: no markup of a model reaches the page.

const el = (tag, ...children) => {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
};

/** Inline marks: code, bold, italic, links to http(s). */
export function inline(text) {
  const out = [];
  const mark = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[^*]*[^\s*])?)\*\*|(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;
  let end = 0;
  for (const found of text.matchAll(mark)) {
    if (found.index > end) out.push(text.slice(end, found.index));
    const [whole, , code, bold, italic, label, href] = found;
    if (code !== undefined) out.push(el("code", code.trim()));
    else if (bold !== undefined) out.push(el("strong", ...inline(bold)));
    else if (italic !== undefined) out.push(el("em", ...inline(italic)));
    else {
      const link = el("a", label);
      Object.assign(link, { href, target: "_blank", rel: "noopener noreferrer" });
      out.push(link);
    }
    end = found.index + whole.length;
  }
  if (end < text.length) out.push(text.slice(end));
  return out;
}

const ITEM = /^\s*(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)/;

function codeBlock(code, language) {
  const copy = el("button", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1200);
  });
  const bar = el("div", el("span", language || "text"), copy);
  bar.className = "bar";
  const block = el("div", bar, el("pre", el("code", code)));
  block.className = "block";
  return block;
}

function list(lines) {
  const ordered = ITEM.exec(lines[0])[2];
  const node = el(ordered === undefined ? "ul" : "ol");
  if (ordered !== undefined) node.start = Number(ordered);
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found) node.append(el("li", ...inline(found[3])));
    else node.lastChild.append(" ", ...inline(line.trim()));
  }
  return node;
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const line = (row, tag) => el("tr", ...cells(row).map((cell) => el(tag, ...inline(cell))));
  return el("table", el("thead", line(lines[0], "th")), el("tbody", ...lines.slice(2).map((row) => line(row, "td"))));
}

/** A text as a list of block nodes. A fence that is not closed yet holds all that follows: texts arrive piece by piece. */
export function render(text) {
  const lines = text.split("\n"), out = [];
  let at = 0;
  const take = (fits) => {
    const from = at;
    while (at < lines.length && fits(lines[at])) at += 1;
    return lines.slice(from, at);
  };
  while (at < lines.length) {
    const line = lines[at], fence = FENCE.exec(line), heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (!line.trim()) at += 1;
    else if (fence) {
      at += 1;
      const code = take((next) => !next.trim().startsWith(fence[1]));
      at += 1;
      out.push(codeBlock(code.join("\n"), fence[2]));
    } else if (heading) {
      out.push(el(["h2", "h3", "h4"][Math.min(heading[1].length, 3) - 1], ...inline(heading[2])));
      at += 1;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      out.push(el("hr"));
      at += 1;
    } else if (ITEM.test(line)) out.push(list(take((next) => ITEM.test(next) || /^\s{2,}\S/.test(next))));
    else if (line.startsWith(">")) {
      out.push(el("blockquote", ...inline(take((next) => next.startsWith(">")).map((row) => row.replace(/^>\s?/, "")).join("\n"))));
    } else if (line.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(lines[at + 1] ?? "") && lines[at + 1].includes("|")) {
      out.push(table(take((next) => next.includes("|"))));
    } else {
      const rows = take((next) => next.trim() && !FENCE.test(next) && !ITEM.test(next) && !/^#{1,6}\s/.test(next) && !next.startsWith(">"));
      const paragraph = el("p");
      rows.forEach((row, place) => paragraph.append(...(place ? [el("br")] : []), ...inline(row)));
      out.push(paragraph);
    }
  }
  return out;
}
