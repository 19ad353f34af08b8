// The stage: shows a photo, its masks and results at any zoom, and turns pointers and keys into
// gestures. Points are in pixels of the photo; the screen is in CSS pixels.

import { TOOLS } from './tools.js';

const OPACITY = 0.42; // of the overlay, however often a place was painted
const LEAST = 0.02, MOST = 64; // screen pixels per pixel of the photo

// Colours of regions, as red, green and blue.
export const COLOURS = [
  [255, 64, 105], [47, 140, 255], [255, 170, 20], [34, 190, 120],
  [165, 95, 255], [255, 110, 200], [0, 190, 200], [175, 190, 40],
];

export class Stage extends EventTarget {
  constructor(root) {
    super();
    this.root = root;
    for (const name of ['photo', 'overlay', 'marks']) {
      const canvas = document.createElement('canvas');
      canvas.setAttribute('aria-hidden', 'true');
      root.prepend(canvas);
      this[name] = canvas;
    }
    root.prepend(this.photo, this.overlay, this.marks);
    Object.assign(this, {
      picture: null, base: null, shown: null, cells: [], chosen: 0, live: null, mask: null,
      bits: 0, active: 1, erase: false, tool: 'brush', brush: 24, mode: 'paint', split: 0.5,
      peek: false, frame: null, crop: null, scale: 1, x: 0, y: 0, fitted: true, cursor: null,
      keyboard: false, gesture: null, space: false, pointers: new Map(), pen: false, todo: new Set(),
      enabled: true,
    });
    this.listen();
    new ResizeObserver(() => this.resize()).observe(root);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // What is shown

  show(picture, base, mask) {
    const same = this.picture && picture && this.picture.width === picture.width && this.picture.height === picture.height;
    Object.assign(this, { picture, base, mask, shown: null, cells: [], live: null, frame: null, crop: null, cursor: null, gesture: null });
    this.changes?.abort();
    if (mask) {
      this.changes = new AbortController();
      mask.addEventListener('change', ({ detail }) => this.draw('overlay', detail), { signal: this.changes.signal });
    }
    if (!same) this.fit();
    this.draw();
  }

  set(values) {
    Object.assign(this, values);
    this.draw();
  }

  // The view

  // As many columns as show the pictures largest.
  get columns() {
    const { width, height } = this.picture;
    const scale = (columns) => Math.min(this.wide / columns / width, this.high / Math.ceil(this.count / columns) / height);
    let best = 1;
    for (let n = 2; n <= this.count; n++) if (scale(n) > scale(best) * 1.01) best = n;
    return best;
  }
  get count() { return this.mode === 'all' ? Math.max(1, this.cells.length) : 1; }

  // The place of the n-th cell on the screen: x, y, width, height.
  cell(n = 0) {
    if (this.count === 1) return [0, 0, this.wide, this.high];
    const { columns } = this;
    const rows = Math.ceil(this.count / columns);
    const above = 46; // the views
    const [w, h] = [this.wide / columns, (this.high - above) / rows];
    return [(n % columns) * w, above + Math.floor(n / columns) * h, w, h];
  }

  fit() {
    this.fitted = true;
    if (!this.picture || !this.wide) return;
    const [, , w, h] = this.cell();
    const { width, height } = this.picture;
    const beside = Math.min(32, w * 0.03), above = this.count > 1 ? beside : Math.min(56, h * 0.14); // below the views
    this.scale = Math.min((w - 2 * beside) / width, (h - 2 * above) / height, MOST);
    [this.x, this.y] = [width / 2, height / 2];
    this.moved();
  }

  moved() {
    this.draw();
    this.dispatchEvent(new Event('view'));
  }

  // Zooms by a factor about a point of the screen.
  zoom(factor, at = null) {
    if (!this.picture) return;
    const [left, top, w, h] = this.cell(at ? this.cellAt(at) : 0);
    const [sx, sy] = at ?? [left + w / 2, top + h / 2];
    const before = this.scale;
    this.scale = Math.min(MOST, Math.max(LEAST, before * factor));
    const [dx, dy] = [sx - left - w / 2, sy - top - h / 2];
    this.x += dx / before - dx / this.scale;
    this.y += dy / before - dy / this.scale;
    this.fitted = false;
    this.moved();
  }

  pan(dx, dy) {
    if (!this.picture) return;
    this.x = Math.min(this.picture.width, Math.max(0, this.x - dx / this.scale));
    this.y = Math.min(this.picture.height, Math.max(0, this.y - dy / this.scale));
    this.fitted = false;
    this.moved();
  }

  cellAt([sx, sy]) {
    for (let n = 0; n < this.count; n++) {
      const [x, y, w, h] = this.cell(n);
      if (sx >= x && sx < x + w && sy >= y && sy < y + h) return n;
    }
    return 0;
  }

  toPhoto([sx, sy], n = 0) {
    const [x, y, w, h] = this.cell(n);
    return [(sx - x - w / 2) / this.scale + this.x, (sy - y - h / 2) / this.scale + this.y];
  }

  toScreen([px, py], n = 0) {
    const [x, y, w, h] = this.cell(n);
    return [(px - this.x) * this.scale + x + w / 2, (py - this.y) * this.scale + y + h / 2];
  }

  resize() {
    const { clientWidth: wide, clientHeight: high } = this.root;
    if (!wide || !high) return;
    const first = !this.wide;
    [this.wide, this.high, this.dots] = [wide, high, Math.min(devicePixelRatio || 1, 2)];
    for (const canvas of [this.photo, this.marks]) {
      canvas.width = Math.round(wide * this.dots);
      canvas.height = Math.round(high * this.dots);
    }
    this.overlay.width = wide;
    this.overlay.height = high;
    if (this.fitted || first) this.fit();
    this.drawNow(); // else the canvases stay empty for a moment
  }

  // Drawing

  // Draws again with the next frame of the screen: everything, or one canvas, or a part of the overlay.
  draw(what = 'all', box = null) {
    if (what === 'overlay' && box && !this.todo.has('overlay')) {
      const old = this.dirty;
      this.dirty = old
        ? [Math.min(old[0], box[0]), Math.min(old[1], box[1]), Math.max(old[2], box[2]), Math.max(old[3], box[3])]
        : box;
      this.todo.add('part');
    } else if (what === 'all') {
      for (const name of ['photo', 'overlay', 'marks']) this.todo.add(name);
    } else {
      this.todo.add(what);
    }
    this.waiting ??= requestAnimationFrame(() => this.drawNow(false));
  }

  drawNow(all = true) {
    if (this.waiting) cancelAnimationFrame(this.waiting);
    this.waiting = null;
    if (!this.wide) return;
    if (all || this.todo.has('photo')) this.drawPhoto();
    if (all || this.todo.has('overlay')) this.drawOverlay();
    else if (this.todo.has('part')) this.drawOverlay(this.dirty);
    if (all || this.todo.has('marks') || this.todo.has('photo')) this.drawMarks();
    this.dirty = null;
    this.todo.clear();
  }

  drawPhoto() {
    const context = this.photo.getContext('2d');
    context.setTransform(this.dots, 0, 0, this.dots, 0, 0);
    context.clearRect(0, 0, this.wide, this.high);
    if (!this.picture) return;
    for (let n = 0; n < this.count; n++) {
      const [x, y, w, h] = this.cell(n);
      context.save();
      context.beginPath();
      context.rect(x, y, w, h);
      context.clip();
      const shown = this.mode === 'all' ? this.cells[n]?.preview : this.mode === 'paint' ? null : this.shown;
      const own = this.peek || !shown ? this.base : shown;
      this.drawPreview(context, own, n);
      if (this.live && !this.peek && !shown) this.drawLive(context, n);
      if (this.mode === 'slider' && shown && !this.peek) {
        const [sx] = this.toScreen([this.split * this.picture.width, 0]);
        context.beginPath();
        context.rect(x, y, sx - x, h);
        context.clip();
        this.drawPreview(context, this.base, n);
      }
      context.restore();
    }
  }

  drawPreview(context, preview, n) {
    if (!preview) return;
    const { width, height } = this.picture;
    const image = preview.want(Math.max(width, height) * this.scale * this.dots, () => this.draw('photo'));
    if (!image) return;
    const [x, y] = this.toScreen([0, 0], n);
    context.imageSmoothingEnabled = image.naturalWidth < width || this.scale * this.dots < 3; // else pixels are seen
    context.imageSmoothingQuality = 'high';
    context.drawImage(image, x, y, width * this.scale, height * this.scale);
  }

  drawLive(context, n) {
    const { image, frame } = this.live;
    const [x0, y0] = this.toScreen(frame ? frame.slice(0, 2) : [0, 0], n);
    const [x1, y1] = this.toScreen(frame ? frame.slice(2) : [this.picture.width, this.picture.height], n);
    context.imageSmoothingEnabled = true;
    context.drawImage(image, x0, y0, x1 - x0, y1 - y0);
  }

  // Colours of the overlay for every value of a mask's byte: inside, and at an edge.
  colours() {
    const inside = new Uint32Array(256), edge = new Uint32Array(256);
    for (let value = 1; value < 256; value++) {
      const bit = value & this.active ? this.active : value & -value;
      if (!(value & this.bits)) continue;
      const [r, g, b] = COLOURS[Math.log2(bit)];
      const strength = bit === this.active ? OPACITY : OPACITY / 2;
      inside[value] = ((strength * 255) << 24 | b << 16 | g << 8 | r) >>> 0;
      edge[value] = ((bit === this.active ? 255 : 150) << 24 | b << 16 | g << 8 | r) >>> 0;
    }
    return [inside, edge];
  }

  // The overlay takes the mask's pixel under each pixel of the screen, so every zoom is exact.
  drawOverlay(part = null) {
    const context = this.overlay.getContext('2d');
    const visible = this.mask && this.picture && this.mode === 'paint' && !this.peek;
    let box = [0, 0, this.wide, this.high];
    if (part && visible) {
      const [[ax, ay], [bx, by]] = [this.toScreen(part.slice(0, 2)), this.toScreen(part.slice(2))];
      box = [Math.max(0, Math.floor(ax) - 2), Math.max(0, Math.floor(ay) - 2), Math.min(this.wide, Math.ceil(bx) + 2), Math.min(this.high, Math.ceil(by) + 2)];
    }
    const [left, top, right, bottom] = box;
    const [w, h] = [right - left, bottom - top];
    if (w <= 0 || h <= 0) return;
    if (!visible) return context.clearRect(left, top, w, h);
    const { width, height, data } = this.mask;
    const [inside, edge] = this.colours();
    const pixels = context.createImageData(w, h);
    const out = new Uint32Array(pixels.data.buffer);
    const columns = new Int32Array(w + 2), rows = new Int32Array(h + 2);
    for (let i = 0; i < w + 2; i++) columns[i] = Math.floor(this.toPhoto([left + i - 0.5, 0])[0]);
    for (let i = 0; i < h + 2; i++) rows[i] = Math.floor(this.toPhoto([0, top + i - 0.5])[1]);
    const { bits } = this;
    const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x] & bits);
    for (let j = 0; j < h; j++) {
      const y = rows[j + 1];
      if (y < 0 || y >= height) continue;
      const row = y * width;
      for (let i = 0; i < w; i++) {
        const x = columns[i + 1];
        if (x < 0 || x >= width) continue;
        const value = data[row + x] & bits;
        if (!value) continue;
        const rim = at(columns[i], y) !== value || at(columns[i + 2], y) !== value || at(x, rows[j]) !== value || at(x, rows[j + 2]) !== value;
        out[j * w + i] = rim ? edge[value] : inside[value];
      }
    }
    context.putImageData(pixels, left, top);
  }

  drawMarks() {
    const context = this.marks.getContext('2d');
    context.setTransform(this.dots, 0, 0, this.dots, 0, 0);
    context.clearRect(0, 0, this.wide, this.high);
    if (!this.picture) return;
    if (!this.base && !this.shown) this.outline(context, [0, 0, this.picture.width, this.picture.height], [3, 6]);
    if (this.mode === 'all') return this.drawCells(context);
    if (this.mode === 'slider' && this.shown && !this.peek) return this.drawSlider(context);
    if (this.peek) return;
    if (this.frame && this.mode === 'paint') this.drawFrame(context);
    if (this.mode !== 'paint') return;
    TOOLS[this.tool].marks?.(this, context);
    if (this.cursor && this.enabled) this.drawCursor(context);
  }

  // A line that is seen on light and on dark ground.
  twice(context, path, dashes = []) {
    context.beginPath();
    path();
    context.setLineDash([]);
    context.lineWidth = 3;
    context.strokeStyle = 'rgba(0, 0, 0, 0.55)';
    context.stroke();
    context.setLineDash(dashes);
    context.lineWidth = 1.5;
    context.strokeStyle = '#fff';
    context.stroke();
    context.setLineDash([]);
  }

  outline(context, [x0, y0, x1, y1], dashes = []) {
    const [[ax, ay], [bx, by]] = [this.toScreen([x0, y0]), this.toScreen([x1, y1])];
    this.twice(context, () => context.rect(ax, ay, bx - ax, by - ay), dashes);
  }

  // What the network sees, and at which size.
  drawFrame(context) {
    this.outline(context, this.frame, [6, 5]);
    const [x, y] = this.toScreen(this.frame.slice(0, 2));
    const text = `the network sees this, as ${this.seen}`;
    context.font = '11.5px system-ui, sans-serif';
    const wide = context.measureText(text).width + 10;
    const left = Math.max(0, Math.min(x, this.wide - wide)), top = y >= 20 ? y - 19 : Math.max(0, y);
    context.fillStyle = 'rgba(0, 0, 0, 0.6)';
    context.fillRect(left, top, wide, 18);
    context.fillStyle = '#fff';
    context.fillText(text, left + 5, top + 13);
  }

  drawCursor(context) {
    const [x, y] = this.toScreen(this.cursor);
    const round = this.tool === 'brush';
    const radius = round ? Math.max(2, (this.brush / 2) * this.scale) : 6;
    if (round) this.twice(context, () => context.arc(x, y, radius, 0, 7));
    if (this.keyboard || (!round && this.tool !== 'hand')) {
      this.twice(context, () => {
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          context.moveTo(x + 3 * dx, y + 3 * dy);
          context.lineTo(x + 9 * dx, y + 9 * dy);
        }
      });
    }
  }

  drawSlider(context) {
    const [x] = this.toScreen([this.split * this.picture.width, 0]);
    this.twice(context, () => { context.moveTo(x, 0); context.lineTo(x, this.high); });
    const y = this.high / 2;
    context.beginPath();
    context.arc(x, y, 15, 0, 7);
    context.fillStyle = '#fff';
    context.shadowColor = 'rgba(0, 0, 0, 0.4)';
    context.shadowBlur = 6;
    context.fill();
    context.shadowBlur = 0;
    context.beginPath();
    for (const s of [-1, 1]) {
      context.moveTo(x + 4 * s, y - 5);
      context.lineTo(x + 9 * s, y);
      context.lineTo(x + 4 * s, y + 5);
    }
    context.strokeStyle = '#333';
    context.lineWidth = 1.8;
    context.stroke();
  }

  drawCells(context) {
    context.font = '600 12px system-ui, sans-serif';
    for (let n = 0; n < this.count; n++) {
      const [x, y, w, h] = this.cell(n);
      context.strokeStyle = n === this.chosen ? '#4c8dff' : 'rgba(128, 128, 128, 0.35)';
      context.lineWidth = n === this.chosen ? 3 : 1;
      context.strokeRect(x + 1.5, y + 1.5, w - 3, h - 3);
      const label = this.cells[n]?.label;
      if (!label) continue;
      const wide = context.measureText(label).width + 14;
      context.fillStyle = 'rgba(0, 0, 0, 0.65)';
      context.beginPath();
      context.roundRect(x + 10, y + h - 32, wide, 22, 6);
      context.fill();
      context.fillStyle = '#fff';
      context.fillText(label, x + 17, y + h - 17);
    }
  }

  // Pointers

  point(event) {
    const box = this.root.getBoundingClientRect();
    return [event.clientX - box.left - this.root.clientLeft, event.clientY - box.top - this.root.clientTop];
  }

  listen() {
    const { root } = this;
    const on = (name, handle, options) => root.addEventListener(name, handle, options);
    on('pointerdown', (event) => this.down(event));
    on('pointermove', (event) => this.move(event));
    for (const name of ['pointerup', 'pointercancel']) on(name, (event) => this.up(event));
    on('pointerleave', (event) => {
      if (event.pointerType === 'mouse' && !this.gesture) { this.cursor = null; this.draw('marks'); }
    });
    on('wheel', (event) => {
      if (!this.picture) return;
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
      this.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), this.point(event));
    }, { passive: false });
    on('keydown', (event) => this.key(event));
    on('contextmenu', (event) => event.target.tagName === 'CANVAS' && event.preventDefault());
    on('auxclick', (event) => event.preventDefault());
  }

  down(event) {
    if (!this.picture || event.target.closest('button, a, input, label')) return;
    this.keyboard = false;
    this.pen ||= event.pointerType === 'pen';
    const at = this.point(event);
    this.pointers.set(event.pointerId, at);
    try { this.root.setPointerCapture(event.pointerId); } catch { /* a made-up pointer */ }
    if (event.pointerType === 'touch' && this.pointers.size === 2) return this.pinch();
    if (this.pointers.size > 1 || this.gesture) return;
    const finger = event.pointerType === 'touch' && this.pen; // the palm beside a pen
    const panning = event.button === 1 || this.space || finger || this.tool === 'hand' || (this.mode === 'paint' && !this.enabled);
    if (event.button === 2 || (event.button > 2 && event.pointerType === 'mouse')) return;
    if (panning) this.gesture = { kind: 'pan', from: at };
    else if (this.mode === 'slider') { this.gesture = { kind: 'slide' }; this.slide(at); }
    else if (this.mode !== 'paint') this.gesture = this.holding(at);
    else this.begin(at, event);
    if (event.button === 1) event.preventDefault();
    this.look();
  }

  // A press on a result: moving pans, resting shows the original, a click among several chooses.
  holding(at) {
    const gesture = { kind: 'hold', from: at, start: at };
    gesture.timer = setTimeout(() => {
      if (this.gesture === gesture && this.mode === 'result') { gesture.peeked = true; this.look(true); }
    }, 180);
    return gesture;
  }

  begin(at, event) {
    if (!this.enabled) return;
    const point = this.toPhoto(at);
    this.cursor = point;
    this.gesture = { kind: 'tool', touch: event?.pointerType === 'touch', time: performance.now(), alt: event?.altKey, shift: event?.shiftKey };
    TOOLS[this.tool].down(this, point);
  }

  // Two fingers move and zoom; a stroke that the first finger has just begun is taken back.
  pinch() {
    if (this.gesture?.kind === 'tool') {
      if (performance.now() - this.gesture.time < 400) TOOLS[this.tool].cancel?.(this);
      else TOOLS[this.tool].up(this, this.cursor);
    }
    clearTimeout(this.gesture?.timer);
    this.gesture = { kind: 'pinch', last: [...this.pointers.values()] };
    this.draw();
  }

  move(event) {
    if (!this.picture) return;
    const at = this.point(event);
    const { gesture } = this;
    if (!this.pointers.has(event.pointerId)) { // nothing is pressed
      if (event.pointerType === 'touch') return;
      this.cursor = this.toPhoto(at);
      this.keyboard = false;
      TOOLS[this.tool].hover?.(this, this.cursor);
      return this.draw('marks');
    }
    this.pointers.set(event.pointerId, at);
    if (!gesture) return;
    if (gesture.kind === 'pinch') return this.pinching(gesture);
    if (gesture.kind === 'pan') {
      this.pan(at[0] - gesture.from[0], at[1] - gesture.from[1]);
      gesture.from = at;
    } else if (gesture.kind === 'slide') {
      this.slide(at);
    } else if (gesture.kind === 'hold') {
      const far = Math.hypot(at[0] - gesture.start[0], at[1] - gesture.start[1]) > 5;
      if (gesture.peeked || !(far || gesture.panned)) return;
      gesture.panned = true;
      this.pan(at[0] - gesture.from[0], at[1] - gesture.from[1]);
      gesture.from = at;
    } else {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) this.drag(this.toPhoto(this.point(one)));
    }
  }

  drag(point) {
    this.cursor = point;
    TOOLS[this.tool].move?.(this, point);
    this.draw('marks');
  }

  pinching(gesture) {
    const now = [...this.pointers.values()];
    if (now.length < 2) return;
    const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const [from, to] = [middle(gesture.last), middle(now)];
    this.pan(to[0] - from[0], to[1] - from[1]);
    this.zoom(apart(now) / apart(gesture.last), to);
    gesture.last = now;
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const { gesture } = this;
    if (!gesture) return;
    if (gesture.kind === 'pinch') {
      if (!this.pointers.size) this.gesture = null;
      return;
    }
    this.gesture = null;
    clearTimeout(gesture.timer);
    if (gesture.kind === 'tool') {
      if (event.type === 'pointercancel') TOOLS[this.tool].cancel?.(this);
      else { this.gesture = gesture; TOOLS[this.tool].up(this, this.toPhoto(this.point(event))); this.gesture = null; }
    } else if (gesture.kind === 'hold') {
      if (!gesture.panned && !gesture.peeked && this.mode === 'all') {
        this.dispatchEvent(new CustomEvent('choose', { detail: this.cellAt(gesture.start) }));
      }
    }
    if (event.pointerType === 'touch') this.cursor = null;
    this.look(false);
    this.draw();
  }

  slide([sx]) {
    this.split = Math.min(1, Math.max(0, this.toPhoto([sx, 0])[0] / this.picture.width));
    this.draw('photo');
  }

  // Shows the original while `peek`; always brings the mouse's shape up to date.
  look(peek = this.peek) {
    const { kind } = this.gesture ?? {};
    const grab = this.space || this.tool === 'hand' || !this.enabled || ['result', 'all'].includes(this.mode);
    this.root.dataset.cursor = kind === 'pan' || kind === 'pinch' ? 'grabbing' : this.mode === 'slider' ? 'slide' : grab ? 'grab' : 'tool';
    if (peek !== this.peek) this.set({ peek });
  }

  // Keys on the stage: arrows move a pointer, Enter presses and releases it.

  key(event) {
    if (!this.picture || event.target !== this.root || event.ctrlKey || event.metaKey) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      event.preventDefault();
      const step = (event.shiftKey ? 40 : event.altKey ? 1 / this.scale : 8);
      if (this.mode === 'slider') {
        this.split = Math.min(1, Math.max(0, this.split + way[0] * step / 400));
        return this.draw('photo');
      }
      if (this.mode !== 'paint' || this.tool === 'hand') return this.pan(-way[0] * step * 3, -way[1] * step * 3);
      return this.walk(way, step / (event.altKey ? 1 : this.scale));
    }
    if (event.key === 'Enter' && this.mode === 'paint') {
      event.preventDefault();
      this.press();
    }
  }

  walk([dx, dy], step) {
    const { width, height } = this.picture;
    const [x, y] = this.cursor ?? [width / 2, height / 2];
    this.keyboard = true;
    this.cursor = [Math.min(width, Math.max(0, x + dx * step)), Math.min(height, Math.max(0, y + dy * step))];
    if (this.gesture?.kind === 'tool') this.drag(this.cursor);
    this.draw('marks');
  }

  press() {
    this.keyboard = true;
    this.cursor ??= [this.picture.width / 2, this.picture.height / 2];
    if (this.gesture?.kind === 'tool') {
      TOOLS[this.tool].up(this, this.cursor);
      this.gesture = null;
    } else {
      this.begin(this.toScreen(this.cursor), null);
      if (TOOLS[this.tool].click) {
        TOOLS[this.tool].up(this, this.cursor);
        this.gesture = null;
      }
    }
    this.draw();
  }

  // Takes back a gesture in progress; false if there is none.
  escape() {
    if (this.gesture?.kind !== 'tool') return false;
    TOOLS[this.tool].cancel?.(this);
    this.gesture = null;
    this.draw();
    return true;
  }
}
