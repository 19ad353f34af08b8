// The list of regions with their exemplars, and the texts.

import { $, button, choose, debounced, el } from './dom.js';
import { edit, gallery, give, giveFile, thumb } from './exemplars.js';
import { COLOURS } from './stage.js';
import { addRegion, emit, input, inputs, on, removeRegion, state } from './state.js';

const colour = (bit) => `rgb(${COLOURS[Math.log2(bit)].join(' ')})`;

function share(region) {
  const part = state.doc.mask.share(region.bit) * 100;
  if (!part) return 'nothing painted yet';
  return `${part < 0.1 ? 'under 0.1' : part < 10 ? part.toFixed(1) : Math.round(part)} % of the photo`;
}

async function chooseFile(index) {
  const file = await choose();
  if (file) giveFile(file, index);
}

function slot(region, index) {
  const { exemplar } = region;
  const pick = button('pick', 'From the photo', () => { select(index); emit('pick', index); }, { text: 'From photo', title: 'Pick a part of the photo itself' });
  if (exemplar) {
    return el('div', { class: 'exemplar' },
      el('button', { type: 'button', class: 'look', 'aria-label': `Crop the exemplar of region ${index + 1}`, title: 'Crop, or paint the subject', onclick: () => edit(index) }, thumb(exemplar)),
      el('div', { class: 'stack' }, el('p', { class: 'name', title: exemplar.picture.name }, exemplar.picture.name),
        el('p', { class: 'faint' }, [exemplar.box && 'cropped', exemplar.cut && 'subject masked'].filter(Boolean).join(', ') || 'whole picture'),
        el('span', { class: 'group' },
          button('crop', 'Crop, or paint the subject', () => edit(index)),
          button('upload', 'Another picture', () => chooseFile(index)),
          button('close', 'Take the exemplar away', () => give(null, index)))));
  }
  return el('div', { class: 'exemplar none', data: { index } },
    el('p', {}, 'Exemplar: a picture of what should appear'),
    el('span', { class: 'group' }, button('upload', 'Choose the exemplar', () => chooseFile(index), { text: 'Choose', id: `exemplar-choose-${index}` }), pick),
    el('p', { class: 'faint' }, 'or drop or paste one'), gallery(index));
}

function select(index) {
  state.doc.active = index;
  emit('regions');
}

function ownText(region, index) {
  const text = el('input', {
    type: 'text', value: region.prompt, placeholder: 'own prompt (else the one below)', 'aria-label': `Prompt of region ${index + 1}`,
    oninput: () => { region.prompt = text.value; emit('texts'); },
  });
  return text;
}

function row(region, index) {
  const { doc } = state;
  const many = doc.regions.length > 1;
  const chosen = index === doc.active;
  const swatch = el('span', { class: 'swatch' });
  swatch.style.background = colour(region.bit);
  return el('div', { class: `region${chosen && many ? ' active' : ''}`, data: { index } },
    el('div', { class: 'region-head' },
      el('button', { type: 'button', class: 'quiet', 'aria-pressed': String(chosen), onclick: () => select(index) },
        swatch, el('span', {}, many ? `Region ${index + 1}` : 'Mask'), el('span', { class: 'faint share' }, share(region))),
      many ? button('close', `Remove region ${index + 1}`, () => removeRegion(index), { class: 'quiet' }) : null),
    input('exemplar') && (chosen || region.exemplar) ? slot(region, index) : null,
    many && input('prompt') ? ownText(region, index) : null,
    el('p', { id: `region-error-${index}`, class: 'error', role: 'alert', hidden: true }));
}

export function draw() {
  const { doc, weights } = state;
  $('regions-card').hidden = !(doc && weights && (inputs('mask').length || inputs('picture').length));
  if ($('regions-card').hidden) return;
  const focus = document.activeElement?.closest('#regions') && document.activeElement.getAttribute('aria-label');
  $('regions').replaceChildren(...doc.regions.map(row));
  if (focus) $('regions').querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus();
  $('region-add').hidden = !inputs('mask').length;
  $('region-add').disabled = doc.regions.length >= Math.min(8, state.about.limits.regions);
}

// Only the shares change with every stroke.
const drawShares = debounced(120, () => {
  if (!state.doc) return;
  $('regions').querySelectorAll('.region .share').forEach((place, index) => { place.textContent = share(state.doc.regions[index]); });
});

// Texts

const TEXTS = {
  prompt: ['Prompt', 'What the result shows'],
  target: ['Target', 'What the result shows, if the prompt says what the photo shows'],
  negative_prompt: ['Negative', 'What it should not show'],
};
let last = 'prompt';

function drawTexts() {
  const asked = inputs('text').filter(({ name }) => name !== 'target' || state.doc);
  $('text-card').hidden = !asked.length;
  const order = Object.keys(TEXTS);
  const place = (name) => (order.includes(name) ? order.indexOf(name) : 99);
  const fields = [...asked].sort((a, b) => place(a.name) - place(b.name)).map(({ name, help, required }) => {
    const [title, hint] = TEXTS[name] ?? [name, help];
    const text = el('textarea', {
      id: `text-${name}`, rows: name === 'prompt' ? 2 : 1, value: state.texts[name] ?? '', placeholder: hint, title: help, 'aria-required': String(required),
      onfocus: () => { last = name; }, oninput: () => { state.texts[name] = text.value; emit('texts'); },
    });
    return el('div', { class: 'field text' }, el('label', { htmlFor: `text-${name}` }, title), text);
  });
  const words = (state.weights?.concepts ?? []).map(({ word, name }) => el('button', {
    type: 'button', class: 'token', title: `Put in the word of ${name}`, onclick: () => insert(word),
  }, word));
  $('texts').replaceChildren(...[
    ...fields, words.length ? el('div', { class: 'tokens', role: 'group', 'aria-label': 'Learned words' }, ...words) : null,
  ].filter(Boolean));
}

function insert(word) {
  const text = $(`text-${last}`);
  const space = text.selectionStart && !/\s/.test(text.value[text.selectionStart - 1]) ? ' ' : '';
  text.setRangeText(`${space}${word} `, text.selectionStart, text.selectionEnd, 'end');
  text.dispatchEvent(new Event('input'));
  text.focus();
}

$('region-add').addEventListener('click', addRegion);
on('doc weights regions pictures', draw);
on('mask', drawShares);
on('weights doc recall', drawTexts);
