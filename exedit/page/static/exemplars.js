// Exemplars: the slot of a region, the gallery of pictures, and the sheet for crop and subject.

import * as api from './api.js';
import { $, button, complain, el, say } from './dom.js';
import { Mask } from './mask.js';
import { Stage } from './stage.js';
import { emit, input, pictureById, previewOf, state } from './state.js';

const previews = new Map();
function preview(picture) {
  if (!previews.has(picture.id)) previews.set(picture.id, previewOf(picture));
  return previews.get(picture.id);
}

const whole = ({ width, height }) => [0, 0, width, height];

// A small look of an exemplar: its crop, without what its subject's mask leaves out.
export function thumb({ picture, box, cut }, side = 112) {
  const [x0, y0, x1, y1] = box ?? whole(picture);
  const scale = (side * 2) / Math.max(x1 - x0, y1 - y0);
  const canvas = el('canvas', { width: Math.max(1, Math.round((x1 - x0) * scale)), height: Math.max(1, Math.round((y1 - y0) * scale)) });
  const context = canvas.getContext('2d');
  const draw = async () => {
    const source = preview(picture);
    const image = source.want(Math.max(picture.width, picture.height) * Math.min(scale, 1), draw);
    if (!image) return;
    const s = image.naturalWidth / picture.width;
    const from = [x0 * s, y0 * s, (x1 - x0) * s, (y1 - y0) * s];
    context.imageSmoothingEnabled = scale / s < 3;
    context.globalCompositeOperation = 'copy';
    context.drawImage(image, ...from, 0, 0, canvas.width, canvas.height);
    if (!cut) return;
    const mask = await createImageBitmap(cut);
    const other = el('canvas', { width: canvas.width, height: canvas.height }).getContext('2d');
    other.drawImage(mask, x0, y0, x1 - x0, y1 - y0, 0, 0, canvas.width, canvas.height);
    const shape = other.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < shape.data.length; i += 4) shape.data[i + 3] = shape.data[i];
    other.putImageData(shape, 0, 0);
    context.globalCompositeOperation = 'destination-in';
    context.drawImage(other.canvas, 0, 0);
  };
  draw();
  return canvas;
}

export function give(exemplar, index = state.doc.active) {
  const region = state.doc.regions[index];
  region.exemplar = exemplar && { box: null, cut: null, ...exemplar };
  emit('regions');
  if (exemplar) say(`Region ${index + 1} has an exemplar.`);
}

// Uploads a file as the exemplar of a region.
export async function giveFile(file, index = state.doc.active) {
  const place = () => $(`region-error-${index}`);
  complain(place());
  emit('busy', 'Uploading the exemplar');
  try {
    const picture = await api.upload(file);
    state.pictures = [picture, ...state.pictures];
    give({ picture }, index);
  } catch (error) {
    complain(place(), error.message);
  } finally {
    emit('busy', '');
  }
}

export function gallery(index) {
  const { doc } = state;
  const same = (a, b) => a.name === b.name && a.bytes === b.bytes;
  const others = state.pictures.filter((one) => !one.from_result && !same(one, doc.picture));
  const shown = others.filter((one, i) => others.findIndex((other) => same(one, other)) === i).slice(0, 8);
  if (!shown.length) return null;
  return el('div', { class: 'gallery', role: 'group', 'aria-label': 'Earlier pictures' }, ...shown.map((picture) => el('button', {
    type: 'button', title: picture.name, 'aria-label': `Use ${picture.name} as the exemplar`, onclick: () => give({ picture }, index),
  }, el('img', { src: api.preview('pictures', picture.id, 256), alt: '', loading: 'lazy' }))));
}

// The sheet

let sheet = null; // {stage, mask, region, subject}
export const sheetStage = () => (sheet && $('exemplar-dialog').open ? sheet.stage : null);

const SUBJECT = 8; // the bit of the subject's mask, for its colour

function tool(name, erase = false) {
  Object.assign(sheet.stage, { tool: name, erase });
  sheet.stage.look();
  for (const one of $('exemplar-dialog').querySelectorAll('[data-tool]')) {
    one.setAttribute('aria-pressed', one.dataset.tool === name && (one.dataset.erase === 'true') === erase);
  }
  sheet.stage.draw();
}
export function sheetKey(key) {
  const found = { c: ['crop'], b: ['brush'], e: ['brush', true], l: ['lasso'], r: ['rectangle'], s: ['select'] }[key];
  if (!found || (found[0] !== 'crop' && !input('exemplar_mask'))) return false;
  tool(...found);
  return true;
}

function sheetTools() {
  const made = [['crop', 'Crop', 'crop', 'C']];
  if (input('exemplar_mask')) {
    made.push(['select', 'Select the subject by a click or a box', 'select', 'S'], ['brush', 'Paint the subject', 'brush', 'B'],
      ['brush', 'Erase', 'eraser', 'E'], ['lasso', 'Outline the subject', 'lasso', 'L']);
  }
  return made.map(([name, title, drawn, keys]) => button(drawn, title, () => tool(name, drawn === 'eraser'), {
    keys, text: name === 'crop' ? 'Crop' : '', data: { tool: name, erase: String(drawn === 'eraser') },
  }));
}

async function selected({ detail: { point, box, on } }) {
  const { stage, mask, picture } = sheet;
  complain($('exemplar-error'));
  try {
    const blob = await api.select({ picture: picture.id, ...(point ? { point } : { box }) });
    await mask.read(blob, SUBJECT, on ? 'add' : 'remove');
    mask.commit();
  } catch (error) {
    complain($('exemplar-error'), error.message);
  }
  stage.draw();
}

async function done() {
  const { stage, mask, picture, region } = sheet;
  const box = stage.crop && String(stage.crop) !== String(whole(picture)) ? stage.crop : null;
  const cut = mask.count(SUBJECT) ? await mask.blob(SUBJECT) : null;
  region.exemplar = { picture, box, cut };
  $('exemplar-dialog').close();
  emit('regions');
}

export async function edit(index) {
  const region = state.doc.regions[index];
  const { picture, box, cut } = region.exemplar;
  const dialog = $('exemplar-dialog');
  const root = el('div', { class: 'stage', tabIndex: 0, role: 'application', 'aria-label': 'Exemplar. Arrow keys move the tool, Enter presses and releases it.' });
  dialog.replaceChildren(
    el('header', {}, el('h2', { id: 'exemplar-title' }, 'Exemplar'), el('span', { class: 'group' }, ...sheetTools()),
      button('undo', 'Undo', () => sheet.mask.undo(), { keys: 'Ctrl+Z' }),
      button('clear', 'Whole picture, no mask', () => { sheet.mask.clear(SUBJECT); sheet.mask.commit(); sheet.stage.crop = whole(picture); sheet.stage.draw(); })),
    el('p', { class: 'faint' }, input('exemplar_mask') ? 'Crop to the subject. Painting it as well leaves its background out.' : 'Crop to the subject.'),
    root, el('p', { id: 'exemplar-error', class: 'error', role: 'alert', hidden: true }),
    el('footer', { class: 'row' }, el('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'),
      el('button', { type: 'button', class: 'primary', onclick: done }, 'Use this')),
  );
  dialog.showModal();
  const mask = new Mask(picture.width, picture.height);
  const stage = new Stage(root);
  sheet = { stage, mask, region, picture };
  stage.addEventListener('select', selected);
  stage.show(picture, preview(picture), mask);
  Object.assign(stage, { crop: box ?? whole(picture), bits: SUBJECT, active: SUBJECT, brush: Math.max(2, Math.round(Math.max(picture.width, picture.height) / 16)) });
  tool('crop');
  root.focus();
  if (cut) { await mask.read(cut, SUBJECT); mask.commit(); mask.past = []; }
}

// The exemplar of an earlier job, as its request names it.
export async function recalled(job, index) {
  const asked = job.request.regions[index].exemplar;
  const picture = asked && pictureById(asked.picture);
  if (!picture) return null;
  const cut = asked.mask ? await api.jobCut(job.id, index).catch(() => null) : null;
  return { picture, box: asked.box ?? null, cut };
}

export const missing = () => state.doc.regions.findIndex((region) => input('exemplar')?.required && !region.exemplar);
