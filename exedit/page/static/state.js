// What the page knows. Modules change it and emit what changed; others listen.

import { preview } from './api.js';
import { Mask } from './mask.js';
import { Preview } from './preview.js';

const bus = new EventTarget();
export const on = (names, handle) => {
  for (const name of names.split(' ')) bus.addEventListener(name, ({ detail }) => handle(detail));
};
export const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

export const state = {
  about: null, // the server's answer
  weights: null, // the entry of about.weights in use
  doc: null, // the photo in work, see makeDoc
  docs: new Map(), // picture id to doc, of this visit
  pictures: [], // of the session, newest first
  jobs: [], // of the session, newest first
  shown: null, // {job, candidate}: the result on the stage
  texts: { prompt: '', target: '', negative_prompt: '' },
};

export const inputs = (kind) => state.weights?.inputs.filter((input) => input.kind === kind) ?? [];
export const input = (name) => state.weights?.inputs.find((one) => one.name === name);

export const pictureById = (id) => state.pictures.find((one) => one.id === id);
export function addPicture(picture) {
  state.pictures = [picture, ...state.pictures.filter((one) => one.id !== picture.id)];
  emit('pictures');
  return picture;
}

export const previewOf = ({ id, width, height }) => new Preview(width, height, (side) => preview('pictures', id, side));
const results = new Map();
export function resultPreview(result, { width, height }) {
  if (!results.has(result)) results.set(result, new Preview(width, height, (side) => preview('results', result, side)));
  return results.get(result);
}

// A photo in work: its masks and regions. An exemplar is {picture, box, cut}: box null is the whole
// picture, cut a blob of its subject's mask or null.
const region = (bit) => ({ bit, exemplar: null, prompt: '' });
export function makeDoc(picture) {
  const doc = {
    picture, base: previewOf(picture), mask: new Mask(picture.width, picture.height), regions: [region(1)], active: 0,
  };
  doc.mask.addEventListener('commit', () => emit('mask', doc));
  return doc;
}
export const active = () => state.doc?.regions[state.doc.active] ?? null;

// Changes the list of regions so that undo brings it back, together with the masks.
export function changeRegions(doc, regions, chosen) {
  const before = [doc.regions, doc.active];
  const put = ([list, index]) => { [doc.regions, doc.active] = [list, index]; emit('regions'); };
  doc.mask.commit({ undo: () => put(before), redo: () => put([regions, chosen]) });
  put([regions, chosen]);
}

export function addRegion() {
  const { doc } = state;
  if (!doc || doc.regions.length >= Math.min(8, state.about.limits.regions)) return;
  const used = doc.regions.reduce((bits, one) => bits | one.bit, 0);
  let bit = 1;
  while (used & bit) bit <<= 1;
  doc.mask.begin();
  changeRegions(doc, [...doc.regions, region(bit)], doc.regions.length);
}

export function removeRegion(index) {
  const { doc } = state;
  doc.mask.clear(doc.regions[index].bit);
  const left = doc.regions.filter((_, i) => i !== index);
  changeRegions(doc, left.length ? left : [region(1)], Math.max(0, Math.min(doc.active, left.length - 1)));
}
