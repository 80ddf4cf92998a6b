// The page's script in Node.js, on a document of just what it uses, against a running server: what a user does, step by
// step. It shows the logic without a browser; layout, focus and keys are left to the tests with Playwright.
//
//     node page_driver.mjs page.html http://127.0.0.1:8000 [TOKEN]
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const [file, url, token] = process.argv.slice(2), page = readFileSync(file, "utf8");

class Element {
  constructor(tag, id) {
    Object.assign(this, { tag, id, children: [], listeners: {}, attributes: {}, hidden: false, checked: false, parent: null });
    if (tag !== "option") this.value = "";
    this.classList = { toggle: (name, on) => { this.classes = on ? name : ""; } };
  }
  get firstChild() { return this.children[0]; }
  get lastChild() { return this.children.at(-1); }
  get isConnected() { return this.tag !== "li" ? (this.parent?.isConnected ?? Boolean(this.id)) : Boolean(this.parent); }
  set textContent(text) { this.text = String(text); this.children = []; }
  get textContent() { return this.text ?? ""; }
  append(...nodes) {
    for (const node of nodes) { if (node instanceof Element) node.parent = this; this.children.push(node); }
  }
  replaceChildren(...nodes) {
    this.children = [];
    if (this.tag === "select") this.value = nodes[0]?.value ?? nodes[0]?.text ?? "";
    this.append(...nodes);
  }
  remove() { this.parent.children.splice(this.parent.children.indexOf(this), 1); this.parent = null; }
  setAttribute(name, value) { this.attributes[name] = value; }
  removeAttribute(name) { delete this.attributes[name]; }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  fire(kind) { this.listeners[kind]({ preventDefault() {} }); }
  focus() { document.activeElement = this; }
  checkValidity() { return this.value !== ""; }
  querySelectorAll(what) {
    const found = this.children.filter(node => node instanceof Element).flatMap(node => [node, ...node.querySelectorAll("*")]);
    return what === "*" ? found : found.filter(node => node.tag === what.split(":")[0] && (what === "button" || node.checked));
  }
}

const elements = Object.fromEntries(
  [...page.matchAll(/<(\w+)[^>]* id="([\w-]+)"([^>]*)>/g)].map(([all, tag, id]) => {
    const element = new Element(tag, id);
    element.value = / value="(\w*)"/.exec(all)?.[1] ?? "";
    element.hidden = / hidden\b/.test(all);
    return [id, element];
  }));
const stored = {}, document = {
  getElementById: id => elements[id] ?? assert.fail("no element " + id),
  createElement: tag => new Element(tag), addEventListener() {}, activeElement: null,
};
const sessionStorage = { getItem: key => stored[key] ?? null, setItem: (key, value) => { stored[key] = value; } };
const bodies = [], fetched = (path, options) => {
  if (options?.body) bodies.push(JSON.parse(options.body));
  return fetch(url + path, options);
};
new Function("document", "sessionStorage", "fetch", "getComputedStyle", page.split("<script>")[1].split("</script>")[0])(
  document, sessionStorage, fetched, () => ({ gridTemplateColumns: "1px" }));

const $ = id => elements[id];
const cells = () => $("grid").children.map(item => item.firstChild), names = () => cells().map(button => button.firstChild.alt);
async function until(check, what) {
  for (let i = 0; i < 500; i++) {
    if (check()) return;
    await new Promise(resolve => setTimeout(resolve, 10));
  }
  assert.fail(what + ": " + $("status").textContent);
}
const says = text => until(() => $("status").textContent.includes(text), "expected " + text);
function set(id, value) { $(id).value = value; $("form").fire("input"); }

if (token) {
  await says("asks for its token");
  assert.equal($("key").hidden, false);
  $("token").value = token;
  $("token").fire("change");
}
await says("16 pictures in");
assert.deepEqual($("model").children.map(option => option.text), ["cifar10-turbo", "cifar10-small"]);
assert.ok($("steps").min === 1 && $("steps").max >= 4 && $("steps-shown").textContent === String($("steps").value));
assert.equal($("sampler-row").hidden, true);  // turbo has one
assert.deepEqual(names(), Array.from({ length: 16 }, (_, i) => "airplane, seed " + i));

// settings: the last one counts, and the request before is cancelled
$("classes").children[8].firstChild.checked = true;
set("n", 9);
set("n", 3);
set("seed", 40);
await says("3 pictures in");
assert.deepEqual(names(), ["airplane, seed 40", "ship, seed 41", "airplane, seed 42"]);
assert.equal(bodies.length, 2);
assert.deepEqual(bodies[1].seed, [40, 41, 42]);
set("seed", "");
await new Promise(resolve => setTimeout(resolve, 150));
assert.equal(bodies.length, 2);  // not valid

// one picture: its note, the file, an interpolation, variations
cells()[1].fire("click");
assert.equal($("detail").hidden, false);
assert.equal($("name").textContent, "ship, seed 41");
assert.equal(document.activeElement, $("name"));
const rows = $("note").children.map(node => node.text);
assert.equal(rows[rows.indexOf("engine") + 1], "cpu");
assert.equal(rows[rows.indexOf("seed") + 1], "41");
assert.ok($("download").href.startsWith("data:image/png;base64,") && $("download").download === "ship-41.png");
$("between").fire("click");
await says("Choose the picture");
cells()[2].fire("click");
await says("9 pictures in");
assert.equal(names()[4], "ship, seed 41, 50 % to airplane, seed 42");
assert.deepEqual(bodies.at(-1).to, { class: "airplane", seed: 42, share: [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1] });
cells()[4].fire("click");
assert.ok($("vary").disabled && $("between").disabled);
$("close").fire("click");
assert.ok($("detail").hidden && document.activeElement === cells()[4]);
set("seed", 7);
await says("3 pictures in");
cells()[0].fire("click");
assert.ok(!$("vary").disabled);
$("vary").fire("click");
await says("9 pictures in");
assert.equal(names()[0], "airplane, seed 7, 0 % to airplane, seed 7");
assert.equal(names()[8], "airplane, seed 7, 30 % to airplane, seed 15");

// another model, with previews and samplers
$("model").value = "cifar10-small";
$("model").fire("change");
await says("3 pictures in");
assert.equal($("sampler-row").hidden, false);
const steps = Number($("steps").value), asked = bodies.at(-1);
assert.deepEqual([asked.model, asked.steps, asked.partial_images, "sampler" in asked], ["cifar10-small", steps, Math.min(steps - 1, 8), false]);
set("sampler", "unipc");
await until(() => bodies.at(-1).sampler === "unipc", "the sampler");
await says("3 pictures in");
$("dice").fire("click");
await until(() => bodies.at(-1).seed[0] === $("seed").value, "a new seed");
await says("3 pictures in");

// an error of the server
set("steps", 0);
await until(() => $("status").classes === "wrong", "an error");
console.log("ok");
