// Elements, icons, announcements and downloads.

export const $ = (id) => document.getElementById(id);

// The drawings of the icons, in a box of 24 by 24, drawn with strokes.
const ICONS = {
  brush: 'M20 4 10.5 13.5M7.5 13c-2 .3-2.7 1.7-2.9 3.4-.1 1-.7 1.9-1.6 2.3 1 .9 2.4 1.3 4 1.3 2.6 0 4.2-1.7 4.2-3.6M13.8 9.9 17 13',
  eraser: 'm7.5 19-4-4a1.5 1.5 0 0 1 0-2.1l8.9-8.9a1.5 1.5 0 0 1 2.1 0l5.5 5.5a1.5 1.5 0 0 1 0 2.1L12.5 19ZM8 8.5 15.5 16M7.5 19H20',
  rectangle: 'M4 6h16v12H4z',
  lasso: 'M8 15.4C5.1 14.4 3.5 12.5 3.5 10.2 3.5 6.8 7.3 4.5 12 4.5s8.5 2.3 8.5 5.7-3.8 5.8-8.5 5.8c-.9 0-1.7-.1-2.5-.2M8 15.4a1.7 1.7 0 1 0 .1 2.8c1-.7.8-2.3-.1-2.8Zm0 2.8c.2 1.3-.3 2.3-1.3 2.8',
  fill: 'm11 4.5 7.5 7.5-6.8 6.8a1.5 1.5 0 0 1-2.1 0l-5.4-5.4a1.5 1.5 0 0 1 0-2.1L11 4.5Zm0 0L8.5 2M4 12.5h14M21 16.5c.9 1.3 1.3 2 1.3 2.7a1.3 1.3 0 0 1-2.6 0c0-.7.4-1.4 1.3-2.7Z',
  select: 'M4 20 14 10M17 3v3M17 11v3M11.5 8.5h3M19.5 8.5h3M13.5 5l1.5 1.5M20.5 5 19 6.5M20.5 12 19 10.5',
  hand: 'M8 12V6.2a1.4 1.4 0 0 1 2.8 0V11V4.4a1.4 1.4 0 0 1 2.8 0V11V5.7a1.4 1.4 0 0 1 2.8 0V12V8.5a1.4 1.4 0 0 1 2.7 0v6c0 3.8-2.5 6.5-6.2 6.5-3 0-4.6-1.4-5.9-3.8L4.6 13.7a1.4 1.4 0 0 1 2.3-1.5L8 13.5',
  undo: 'M8.5 5 4 9.5 8.5 14M4.5 9.5H14a5.5 5.5 0 0 1 0 11h-3',
  redo: 'M15.5 5 20 9.5 15.5 14M19.5 9.5H10a5.5 5.5 0 0 0 0 11h3',
  invert: 'M12 3.5a8.5 8.5 0 1 0 0 17zM12 3.5a8.5 8.5 0 0 1 0 17M12 6h3.5M12 9.5h6M12 13h6.5M12 16.5h5',
  clear: 'M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.3 10.5v5.5M13.7 10.5v5.5',
  upload: 'M12 15.5V4M7.5 8 12 3.5 16.5 8M4 15v4.5h16V15',
  download: 'M12 3.5V15M7.5 11 12 15.5 16.5 11M4 15v4.5h16V15',
  plus: 'M12 5v14M5 12h14',
  minus: 'M5 12h14',
  close: 'M6 6l12 12M18 6 6 18',
  fit: 'M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5',
  copy: 'M9 9h11v11H9zM15 9V4H4v11h5',
  recipe: 'M6 3.5h8.5L19 8v12.5H6zM14 3.5V8.5h5M9 12.5h7M9 16h7',
  next: 'M4 12h13M12.5 6.5 18 12l-5.5 5.5M20.5 5v14',
  recall: 'M4 4.5V9h4.5M4.5 9a8 8 0 1 1-.4 5M12 8v4.5l3 2',
  lock: 'M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3',
  unlock: 'M6 11h12v9H6zM8.5 11V7.5a3.5 3.5 0 0 1 6.8-1.2',
  help: 'M9.3 9.3a2.8 2.8 0 1 1 4.1 2.5c-.9.5-1.4 1.1-1.4 2.2M12 17.2v.3M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Z',
  image: 'M4 5h16v14H4zM4 16l5-5 4.5 4.5L16 13l4 4M15.5 9.3v.2',
  crop: 'M7 2.5V17h14.5M2.5 7H17v14.5',
  eye: 'M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12Zm9.5-2.7a2.7 2.7 0 1 0 0 5.4 2.7 2.7 0 0 0 0-5.4Z',
  slider: 'M12 3v18M4 6h5M4 12h5M4 18h5M15 6h5v12h-5',
  grid: 'M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z',
  play: 'M7.5 4.5v15l12-7.5z',
  stop: 'M6.5 6.5h11v11h-11z',
  pick: 'M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M12 8.5v7M8.5 12h7',
  dice: 'M4.5 4.5h15v15h-15zM8.5 8.5v.2M15.5 8.5v.2M12 12v.2M8.5 15.5v.2M15.5 15.5v.2',
};

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  svg.classList.add('icon');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

// An element: properties are set as properties where there are such, else as attributes.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'class') made.className = value;
    else if (name === 'data') Object.assign(made.dataset, value);
    else if (name in made && !['list', 'form'].includes(name)) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A button with an icon; `label` is its name for a screen reader, and its tip.
export function button(name, label, onclick, { text = '', keys = '', ...more } = {}) {
  const tip = keys ? `${label} (${keys})` : label;
  const made = el('button', { type: 'button', title: tip, onclick, ...more }, icon(name));
  if (text) made.append(el('span', {}, text));
  if (text !== label) made.setAttribute('aria-label', label);
  return made;
}

// The markup names the icons of its buttons with data-icon.
export function drawIcons(root = document) {
  for (const found of root.querySelectorAll('[data-icon]')) {
    if (!found.querySelector('svg')) found.prepend(icon(found.dataset.icon));
  }
}

// Says something to a screen reader, and shows it for a moment if `shown`.
export function say(text, shown = false) {
  $('spoken').textContent = text;
  if (!shown) return;
  const note = el('div', { class: 'toast' }, text);
  $('toasts').append(note);
  setTimeout(() => note.remove(), 4000);
}

// Shows an error where its cause is; an empty text takes it away.
export function complain(place, text = '') {
  place.textContent = text;
  place.hidden = !text;
}

export function save(source, name) {
  const url = typeof source === 'string' ? source : URL.createObjectURL(source);
  const link = el('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  if (typeof source !== 'string') setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// Asks for a file; the input also opens on a click of a script without a mouse.
export function choose(accept = 'image/*') {
  return new Promise((done) => {
    const input = el('input', { type: 'file', accept, hidden: true });
    input.addEventListener('change', () => { done(input.files[0] ?? null); input.remove(); });
    input.addEventListener('cancel', () => { done(null); input.remove(); });
    document.body.append(input);
    input.click();
  });
}

export function debounced(wait, action) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), wait);
  };
}

// What the page remembers between visits; a browser that keeps nothing is no error.
const KEPT = 'exedit';
export function remembered() {
  try { return JSON.parse(localStorage.getItem(KEPT)) ?? {}; } catch { return {}; }
}
export function remember(values) {
  try { localStorage.setItem(KEPT, JSON.stringify({ ...remembered(), ...values })); } catch { /* private mode */ }
}
