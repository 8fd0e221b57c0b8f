'use strict';
// Shows the OpenAPI document of this server. The document is inserted as text only and
// never parsed as HTML.

let spec;

// el creates an element: el('td', {class: 'name'}, child, 'text', …). It skips children that are null.
function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  e.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return e;
}

// resolve follows references within the document.
function resolve(x) {
  if (!x || !x.$ref) return x;
  return resolve(x.$ref.slice(2).split('/').reduce((o, k) => o[k.replace(/~1/g, '/').replace(/~0/g, '~')], spec));
}

const nameOf = (x) => (x && x.$ref ? x.$ref.split('/').pop() : null);

// inline renders `code` and **strong**.
function inline(text) {
  return text.split(/(`[^`]*`|\*\*[^*]*\*\*)/).filter(Boolean).map((part) => {
    if (part.startsWith('`')) return el('code', null, part.slice(1, -1));
    if (part.startsWith('**')) return el('strong', null, part.slice(2, -2));
    return part;
  });
}

// prose renders paragraphs and lists.
function prose(text) {
  return (text || '').trim().split(/\n\s*\n/).filter(Boolean).map((block) => {
    if (!/^\s*- /.test(block)) return el('p', null, inline(block.replace(/\s*\n\s*/g, ' ')));
    const items = block.trim().split(/\n?\s*- (?=\S)/).filter(Boolean);
    return el('ul', null, items.map((i) => el('li', null, inline(i.replace(/\s*\n\s*/g, ' ').trim()))));
  });
}

// type renders the type and the limits of a schema in one line.
function type(ref) {
  const s = resolve(ref);
  if (!s) return '';
  const name = nameOf(ref) || (s.allOf && nameOf(s.allOf[0]));
  if (s.type === 'array') return ['array of ', type(s.items)].flat();
  if (name && (s.type === 'object' || s.enum)) return [el('a', {href: '#schema-' + name}, name), s.nullable ? ' or null' : ''];
  const bounds = [];
  if (s.minimum !== undefined) bounds.push('≥ ' + s.minimum);
  if (s.maximum !== undefined) bounds.push('≤ ' + s.maximum);
  if (s.multipleOf !== undefined) bounds.push('multiple of ' + s.multipleOf);
  if (s.minLength) bounds.push('at least ' + s.minLength + ' characters');
  if (s.maxLength !== undefined) bounds.push('at most ' + s.maxLength + ' characters');
  if (s.default !== undefined) bounds.push('default ' + JSON.stringify(s.default));
  let line = (s.format || s.type || 'any') + (s.nullable ? ' or null' : '');
  if (bounds.length) line += ' (' + bounds.join(', ') + ')';
  return [line];
}

function meaning(ref, description) {
  const s = resolve(ref) || {};
  const out = prose(description || s.description);
  if (s.pattern) out.push(el('p', null, 'Pattern ', el('code', null, s.pattern)));
  if (s.enum && !nameOf(ref)) out.push(el('p', null, 'One of ', el('code', null, s.enum.map(String).join(', '))));
  return out;
}

function table(head, rows) {
  return rows.length ? el('table', null, el('thead', null, el('tr', null, head.map((h) => el('th', null, h)))), el('tbody', null, rows)) : null;
}

function properties(ref) {
  const s = resolve(ref);
  const required = s.required || [];
  return table(['Property', 'Type', 'Meaning'], Object.entries(s.properties || {}).map(([name, p]) => el('tr', null,
    el('td', {class: 'name'}, name, required.includes(name) ? el('div', {class: 'required'}, 'always') : null),
    el('td', null, type(p)), el('td', null, meaning(p)))));
}

function examples(content) {
  const given = Object.entries(content.examples || {}).map(([name, e]) => [resolve(e).summary || name, resolve(e).value]);
  if (content.example !== undefined) given.push(['Example', content.example]);
  return given.map(([title, value]) => el('details', null, el('summary', {class: 'dim'}, title),
    el('pre', null, typeof value === 'string' ? value : JSON.stringify(value, null, 2))));
}

function parameters(item, op) {
  const all = [...(item.parameters || []), ...(op.parameters || [])].map(resolve);
  const rows = all.map((p) => el('tr', null,
    el('td', {class: 'name'}, p.name, p.required ? el('div', {class: 'required'}, 'required') : null),
    el('td', null, p.in), el('td', null, type(p.schema)), el('td', null, meaning(p.schema, p.description))));
  return rows.length ? [el('h4', null, 'Parameters'), table(['Name', 'In', 'Type', 'Meaning'], rows)] : [];
}

function body(op) {
  const b = resolve(op.requestBody);
  if (!b) return [];
  return [el('h4', null, 'Body', b.required ? '' : ' (optional)'), ...Object.entries(b.content).flatMap(([media, c]) =>
    [el('p', null, el('code', null, media), ' ', type(c.schema)), properties(c.schema), ...examples(c)])];
}

function responses(op) {
  const rows = Object.entries(op.responses).map(([status, ref]) => {
    const r = resolve(ref);
    const headers = Object.keys(r.headers || {}).filter((h) => !['X-Request-Id', 'Server', 'X-Vman-Dry-Run'].includes(h));
    return el('tr', null, el('td', {class: 'name'}, status), el('td', null, prose(r.description),
      headers.length ? el('p', {class: 'dim'}, 'Headers: ' + headers.join(', ')) : null,
      Object.entries(r.content || {}).flatMap(([media, c]) => [el('p', {class: 'dim'}, media, ' ', type(c.schema)), ...examples(c)])));
  });
  return [el('h4', null, 'Answers'), table(['Status', 'Meaning'], rows)];
}

function operation(o) {
  return el('details', {class: 'op', id: 'op-' + o.op.operationId},
    el('summary', null, el('span', {class: 'method ' + o.method}, o.method.toUpperCase()), el('span', {class: 'path'}, o.path),
      el('span', {class: 'dim'}, o.op.summary)),
    el('div', null, prose(o.op.description), parameters(o.item, o.op), body(o.op), responses(o.op)));
}

function schema([name, s]) {
  return el('details', {class: 'op', id: 'schema-' + name}, el('summary', null, el('span', {class: 'path'}, name), el('span', {class: 'dim'}, s.type || '')),
    el('div', null, prose(s.description), s.pattern ? el('p', null, 'Pattern ', el('code', null, s.pattern)) : null,
      s.enum ? el('p', null, 'One of ', el('code', null, s.enum.map(String).join(', '))) : null, properties(s)));
}

// open opens the element that the fragment of the URL names, and scrolls to it.
function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === 'DETAILS') target.open = true;
  if (target) target.scrollIntoView();
}

function show() {
  const methods = ['get', 'post', 'put', 'patch', 'delete'];
  const all = Object.entries(spec.paths).flatMap(([path, item]) => methods.filter((m) => item[m]).map((method) => ({path, item, method, op: item[method]})));
  const nav = document.getElementById('nav');
  const main = document.getElementById('main');
  nav.append(el('strong', null, spec.info.title + ' ' + spec.info.version));
  main.append(el('h1', null, spec.info.title + ' ', el('span', {class: 'dim'}, spec.info.version)),
    el('p', null, el('a', {href: '/openapi.yaml'}, 'openapi.yaml'), ' · ', el('a', {href: '/openapi.json'}, 'openapi.json')),
    ...prose(spec.info.description));
  for (const tag of spec.tags) {
    const ops = all.filter((o) => o.op.tags.includes(tag.name));
    nav.append(el('h2', null, tag.name), ...ops.map((o) => el('a', {href: '#op-' + o.op.operationId, title: o.method.toUpperCase() + ' ' + o.path}, o.op.summary)));
    main.append(el('h2', {id: 'tag-' + tag.name}, tag.name), ...prose(tag.description), ...ops.map(operation));
  }
  nav.append(el('h2', null, 'schemas'), ...Object.keys(spec.components.schemas).map((n) => el('a', {href: '#schema-' + n}, n)));
  main.append(el('h2', null, 'schemas'), ...Object.entries(spec.components.schemas).map(schema));
  window.addEventListener('hashchange', open);
  open();
}

fetch('/openapi.json').then((r) => {
  if (!r.ok) throw new Error('status ' + r.status);
  return r.json();
}).then((doc) => { spec = doc; show(); }).catch((e) => {
  document.getElementById('main').append(el('p', null, 'The document could not be shown: ' + e.message));
});
