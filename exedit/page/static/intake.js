// Pictures come in by button, drop and paste, as photo, exemplar or mask.

import * as api from './api.js';
import { $, choose, complain, el, remember, say } from './dom.js';
import { give, giveFile, recalled } from './exemplars.js';
import { active, addPicture, changeRegions, emit, inputs, input, makeDoc, on, pictureById, state } from './state.js';
import { restore } from './drafts.js';

const photoError = (text = '') => complain(state.doc ? $('mask-error') : $('photo-error'), text);

// Opens a picture of the session as the photo in work.
export async function open(picture) {
  const known = state.docs.get(picture.id);
  state.doc = known ?? makeDoc(picture);
  state.docs.set(picture.id, state.doc);
  state.shown = null;
  remember({ picture: picture.id });
  emit('doc');
  if (!known) await restore(state.doc);
}

// Shows what is being done; `tell` gets nothing at first, and the message if it fails.
async function during(what, tell, work) {
  tell();
  emit('busy', what);
  try {
    await work();
  } catch (error) {
    tell(error.message);
  } finally {
    emit('busy', '');
  }
}

export function openFile(file) {
  const what = `Uploading ${file.name || 'the picture'}`;
  return during(what, photoError, async () => {
    const picture = addPicture(await api.upload(file, (share) => emit('busy', `${what}: ${Math.round(share * 100)} %`)));
    await open(picture);
    say(`${picture.name} is open, ${picture.width} by ${picture.height} pixels.`);
    for (const note of picture.notes ?? []) say(note, true);
  });
}

export function maskFile(file) {
  const { doc } = state;
  return during('Reading the mask', (message) => complain($('mask-error'), message), async () => {
    const { blob, notes } = await api.readMask(doc.picture.id, file);
    await doc.mask.read(blob, active().bit);
    doc.mask.commit();
    for (const note of notes) say(note, true);
  });
}

export function example() {
  const file = async (name) => {
    const blob = await (await api.call(`static/example/${name}`)).blob();
    return new File([blob], name, { type: blob.type });
  };
  return during('Opening the example', photoError, async () => {
    const [photo, mask, exemplar] = await Promise.all(['image.webp', 'mask.png', 'exemplar.webp'].map(file));
    const [picture, other] = [addPicture(await api.upload(photo)), addPicture(await api.upload(exemplar))];
    await open(picture);
    await state.doc.mask.read(mask, 1);
    state.doc.mask.commit();
    if (input('exemplar')) give({ picture: other });
    say('The example is open. Press Run.');
    $('run').focus();
  });
}

// Brings back the masks, exemplars and texts of an earlier job.
export async function recallInputs(job) {
  const { doc } = state;
  const regions = job.request.regions ?? [];
  doc.mask.begin();
  const made = [];
  for (const [index, asked] of regions.entries()) {
    const bit = 1 << index;
    if (asked.mask) await doc.mask.read(await api.jobMask(job.id, index), bit);
    made.push({ bit, exemplar: await recalled(job, index), prompt: asked.prompt ?? '' });
  }
  const used = made.reduce((bits, { bit }) => bits | bit, 0);
  for (const { bit } of doc.regions) if (!(used & bit)) doc.mask.clear(bit);
  if (made.length) changeRegions(doc, made, 0);
  else doc.mask.commit();
  recallTexts(job);
}

export function recallTexts(job) {
  for (const name of Object.keys(state.texts)) state.texts[name] = job.request[name] ?? '';
  emit('recall');
}

// Where a picture can go now: name, title, what it does, and whether it is for a mask.
function uses() {
  const found = [['Photo', state.doc ? 'the next photo to edit' : 'the photo to edit', openFile, 'image']];
  if (!state.doc) return inputs('photo').length ? found : [];
  if (input('exemplar')) found.unshift(['Exemplar', 'what should appear in the region', (file) => giveFile(file), 'pick']);
  if (inputs('mask').length) found.push(['Mask', 'white where the photo is repainted', maskFile, 'invert']);
  return found;
}

// Pasted pictures: one use is taken at once, else the page asks.
function ask(file) {
  const found = uses();
  if (found.length < 2) return found[0]?.[2](file);
  const dialog = $('ask-dialog');
  const url = URL.createObjectURL(file);
  dialog.replaceChildren(
    el('h2', { id: 'ask-title' }, 'Use the picture as'), el('img', { src: url, alt: 'The pasted picture' }),
    el('div', { class: 'row' }, ...found.map(([name, title, take]) => el('button', { type: 'button', title, onclick: () => { dialog.close(); take(file); } }, name))),
  );
  dialog.addEventListener('close', () => URL.revokeObjectURL(url), { once: true });
  dialog.showModal();
}

function listenToDrops() {
  addEventListener('dragstart', (event) => event.preventDefault()); // the page's own pictures
  let depth = 0;
  const zones = $('drops');
  const carries = (event) => event.dataTransfer?.types.includes('Files');
  const end = () => { depth = 0; zones.hidden = true; };
  addEventListener('dragenter', (event) => {
    if (!carries(event) || document.querySelector('dialog[open]')) return;
    event.preventDefault();
    if (depth++) return;
    zones.replaceChildren(...uses().map(([name, title, take]) => el('div', {
      class: 'zone', data: { use: name.toLowerCase() },
      ondragover: (over) => { over.preventDefault(); over.currentTarget.classList.add('over'); },
      ondragleave: (left) => left.currentTarget.classList.remove('over'),
      ondrop: (drop) => {
        drop.preventDefault();
        drop.stopPropagation();
        end();
        if (drop.dataTransfer.files[0]) take(drop.dataTransfer.files[0]);
      },
    }, el('strong', {}, name), el('span', {}, title))));
    zones.hidden = false;
  });
  addEventListener('dragleave', (event) => { if (carries(event) && --depth <= 0) end(); });
  addEventListener('dragover', (event) => carries(event) && event.preventDefault());
  addEventListener('drop', (event) => { if (carries(event)) { event.preventDefault(); end(); } });
}

export function listen() {
  listenToDrops();
  addEventListener('paste', (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith('image/'));
    if (!file || document.querySelector('dialog[open]')) return;
    event.preventDefault();
    ask(file);
  });
  const openChosen = async () => { const file = await choose(); if (file) openFile(file); };
  $('open').addEventListener('click', openChosen);
  $('empty-open').addEventListener('click', openChosen);
  $('example').addEventListener('click', example);
  $('mask-upload').addEventListener('click', async () => { const file = await choose(); if (file) maskFile(file); });
  on('open-picture', (id) => { const picture = pictureById(id); if (picture) open(picture); });
}
