// Results: the strip of runs, the views that compare, what to do with a result, and whole edits.

import * as api from './api.js';
import { $, button, complain, debounced, el, icon, save, say } from './dom.js';
import { open, recallInputs, recallTexts } from './intake.js';
import { ended, finished, runningJob, stop } from './jobs.js';
import * as settings from './settings.js';
import { addPicture, emit, on, pictureById, resultPreview, state } from './state.js';

let stage = null;
let followed = null; // the job whose candidates are shown as they come

const jobOf = (result) => state.jobs.find((job) => job.candidates.some((one) => one.result === result));
const docJobs = () => state.jobs.filter((job) => job.picture === (state.doc?.picture.id ?? null));
const current = () => state.shown?.job.candidates[state.shown.index] ?? null;

// In the order of a score where there is one.
export function ordered(job) {
  const found = finished(job);
  return found.some((one) => one.score !== null && one.score !== undefined)
    ? found.sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity))
    : found;
}

// Views

const VIEWS = [['paint', 'Paint', 'brush'], ['result', 'Result', 'eye'], ['slider', 'Compare', 'slider'], ['all', 'All', 'grid']];
const possible = (mode) => ({
  paint: Boolean(state.doc), result: Boolean(state.shown || stage.live),
  slider: Boolean(state.shown && state.doc), all: Boolean(state.shown && finished(state.shown.job).length > 1),
})[mode];

export function view(mode) {
  if (!possible(mode)) return;
  const fit = (mode === 'all') !== (stage.mode === 'all') && stage.fitted;
  stage.set({ mode });
  if (fit) stage.fit();
  stage.look();
  drawViews();
  emit('view', mode);
}

export function nextView(back = false) {
  const names = VIEWS.map(([name]) => name).filter(possible);
  const at = names.indexOf(stage.mode) + (back ? -1 : 1);
  view(names[(at + names.length) % names.length]);
}

function drawViews() {
  const found = VIEWS.filter(([name]) => possible(name));
  $('views').hidden = found.length < 2;
  const focus = $('views').contains(document.activeElement) ? document.activeElement.dataset.view : null;
  $('views').replaceChildren(...found.map(([name, title, drawn]) => el('button', {
    type: 'button', role: 'radio', title: `${title} (V)`, 'aria-checked': String(stage.mode === name), data: { view: name }, onclick: () => view(name),
  }, icon(drawn), el('span', {}, title))));
  if (focus) $('views').querySelector(`[data-view=${focus}]`)?.focus();
}

// Shows a candidate, and its photo if another one is open.
export async function show(job, index, mode = null) {
  const picture = job.picture && pictureById(job.picture);
  if (picture && state.doc?.picture.id !== picture.id) {
    const fresh = !state.docs.has(picture.id);
    await open(picture);
    if (fresh && !state.doc.mask.past.length && !state.doc.regions.some(({ bit }) => state.doc.mask.count(bit))) await recallInputs(job);
  } else if (!picture) {
    textDoc(job);
  }
  const { result } = job.candidates[index];
  state.shown = { job, index };
  const list = ordered(job);
  for (const one of list) resultPreview(one.result, job).want(512, () => {}); // to be there when one switches
  stage.set({
    shown: resultPreview(result, job), live: null, chosen: list.findIndex((one) => one.index === index),
    cells: list.map((one) => ({ preview: resultPreview(one.result, job), label: `seed ${one.seed}` })),
  });
  view(mode ?? (stage.mode === 'paint' || !possible(stage.mode) ? 'result' : stage.mode));
  drawAll();
}

// A picture of a text alone has no photo below it.
function textDoc(job) {
  if (state.doc) {
    state.doc = null;
    emit('doc');
  }
  if (stage.picture?.width !== job.width || stage.picture?.height !== job.height || stage.mask) stage.show({ width: job.width, height: job.height }, null, null);
  $('empty').hidden = true;
}

// Actions on the chosen result

function failed(error) {
  complain($('result-error'), error.message);
  say(error.message);
}

async function copy() {
  complain($('result-error'));
  if (!navigator.clipboard?.write) return failed(new Error('This browser copies pictures only from https or from this computer; download the picture instead.'));
  try {
    const { result } = current();
    const blob = api.call(api.resultFile(result)).then((answer) => answer.blob());
    await navigator.clipboard.write([new ClipboardItem({ 'image/png': blob })]);
    say('Copied.', true);
  } catch (error) {
    failed(error);
  }
}

export async function useAsSource() {
  complain($('result-error'));
  try {
    const { result } = current();
    const known = state.pictures.find((one) => one.from_result === result);
    await open(known ?? addPicture(await api.asPicture(result)));
    say('The result is the photo now. Paint the next change.', true);
  } catch (error) {
    failed(error);
  }
}

async function recall() {
  const { job } = state.shown;
  try {
    if (job.picture) await recallInputs(job);
    else recallTexts(job);
    emit('use-weights', job.weights);
    settings.recall(job.request, current().seed);
    say('The masks, the inputs and the settings of this result are back, and its seed is locked.', true);
  } catch (error) {
    failed(error);
  }
}

async function words() {
  const dialog = $('ask-dialog');
  dialog.replaceChildren(el('h2', { id: 'ask-title' }, 'Where each word of the prompt is'),
    el('img', { src: api.wordsFile(current().result), alt: 'The photo once for each word, bright where the word is' }),
    el('div', { class: 'row' }, el('button', { type: 'button', onclick: () => dialog.close() }, 'Close')));
  dialog.showModal();
}

function hold() {
  const made = button('eye', 'Hold to see the original', null, { text: 'Original', keys: 'hold Tab or O', id: 'hold' });
  made.addEventListener('pointerdown', (event) => { made.setPointerCapture(event.pointerId); stage.look(true); });
  for (const name of ['pointerup', 'pointercancel', 'blur']) made.addEventListener(name, () => stage.look(false));
  made.addEventListener('keydown', (event) => { if ([' ', 'Enter'].includes(event.key)) { event.preventDefault(); stage.look(true); } });
  made.addEventListener('keyup', () => stage.look(false));
  return made;
}

function drawActions() {
  const one = current();
  $('actions').hidden = !one;
  $('result-notes').textContent = one ? (state.shown.job.notes ?? []).join(' · ') : '';
  if (!one) return;
  const focus = $('actions').contains(document.activeElement) ? document.activeElement.id : '';
  const { job } = state.shown;
  const name = `exedit-${one.result.slice(0, 8)}`;
  const asked = job.request.settings?.show_words;
  $('actions').replaceChildren(...[
    button('next', 'Use as the next photo', useAsSource, { text: 'Use as next photo', id: 'use-next', class: 'strong' }),
    button('download', 'Download the PNG, with its recipe inside', () => save(api.resultFile(one.result), `${name}.png`), { text: 'Download', id: 'download' }),
    button('copy', 'Copy the picture', copy, { text: 'Copy', id: 'copy' }),
    button('recipe', 'Download the recipe, which repeats the edit', () => save(api.recipeFile(one.result), `${name}.json`), { text: 'Recipe', id: 'recipe' }),
    button('recall', 'Bring back the masks, settings and seed of this result', recall, { text: 'Recall', id: 'recall' }),
    job.picture ? hold() : null,
    asked ? button('grid', 'Where each word is', words, { text: 'Words', id: 'words' }) : null,
    el('span', { class: 'faint grow' }, [`seed ${one.seed}`, one.seconds && `${one.seconds.toFixed(1)} s`, job.weights].filter(Boolean).join(' · ')),
  ].filter(Boolean));
  if (focus) $(focus)?.focus();
}

// The strip

function progressOf(job) {
  if (job.state === 'waiting') return job.position ? `${job.position} before it` : 'next';
  const { progress } = job;
  if (!progress) return '';
  return `${Math.round(share(job) * 100)} %`;
}

// How much of a job is done, from 0 to 1.
export function share(job) {
  const { progress } = job;
  if (!progress) return 0;
  const { candidate, region, regions, step, steps } = progress;
  return (candidate + (region + step / Math.max(1, steps)) / Math.max(1, regions)) / job.candidates.length;
}

function candidateThumb(job, one) {
  const chosen = state.shown?.job === job && state.shown.index === one.index;
  if (one.result) {
    return el('button', {
      type: 'button', class: 'thumb', 'aria-pressed': String(chosen), title: `seed ${one.seed}`, data: { result: one.result },
      'aria-label': `Candidate ${one.index + 1}, seed ${one.seed}`, onclick: () => { followed = null; show(job, one.index); },
    }, el('img', { src: api.preview('results', one.result, 256), alt: '' }),
    el('span', { class: 'cap' }, one.score === null || one.score === undefined ? String(one.seed) : one.score.toFixed(2)));
  }
  const now = job.state === 'running' && job.progress?.candidate === one.index;
  return el('div', { class: `thumb pending${now ? ' now' : ''}${one.error || ended(job) ? ' void' : ''}`, title: one.error ?? '' },
    now ? el('span', { class: 'spinner' }) : null,
    el('span', { class: 'cap' }, one.error ? 'failed' : job.state === 'cancelled' ? 'cancelled' : job.state === 'failed' ? 'failed' : String(one.seed)));
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });

function group(job) {
  const picture = job.picture && pictureById(job.picture);
  const list = job.candidates.map((one, index) => ({ ...one, index }));
  const scores = ended(job) ? [...ordered(job), ...list.filter((one) => !one.result)] : list;
  const says = { waiting: 'waiting', running: 'running', done: '', failed: 'failed', cancelled: 'cancelled' }[job.state];
  return el('div', { class: `group-card ${job.state}`, role: 'listitem', data: { job: job.id } },
    el('div', { class: 'group-head' }, el('span', {}, [clock(job.created), says, ended(job) ? '' : progressOf(job)].filter(Boolean).join(' · ')),
      button('close', ended(job) ? 'Delete this run and its results' : 'Cancel this run', () => stop(job), { class: 'quiet small' })),
    el('div', { class: 'thumbs' },
      picture ? el('button', { type: 'button', class: 'thumb source', title: `The photo: ${picture.name}`, 'aria-label': `Open the photo ${picture.name}`, onclick: () => { emit('open-picture', picture.id); } },
        el('img', { src: api.preview('pictures', picture.id, 256), alt: '' }), el('span', { class: 'cap' }, 'photo')) : null,
      ...scores.map((one) => candidateThumb(job, one))),
    job.error ? el('p', { class: 'error' }, job.error) : null);
}

// The strip changes with every step of a run; only groups that look different are made anew.
const looks = new Map();
function drawStrip() {
  $('results').hidden = !state.jobs.length;
  const kept = new Map([...$('strip').children].map((child) => [child.dataset.job, child]));
  const wanted = state.jobs.map((job) => {
    const key = JSON.stringify([job.state, job.position, job.candidates, job.error, ended(job) ? 0 : progressOf(job), job.progress?.candidate, state.shown?.job === job && state.shown.index, Boolean(pictureById(job.picture))]);
    if (looks.get(job.id) === key && kept.has(job.id)) return kept.get(job.id);
    looks.set(job.id, key);
    const focus = kept.get(job.id)?.contains(document.activeElement) ? document.activeElement.getAttribute('aria-label') : null;
    const made = group(job);
    if (focus) queueMicrotask(() => made.querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus());
    return made;
  });
  const same = wanted.length === $('strip').children.length && wanted.every((one, i) => one === $('strip').children[i]);
  if (!same) $('strip').replaceChildren(...wanted);
}

function drawProgress() {
  const job = runningJob();
  $('progress').hidden = !job;
  $('cancel').hidden = !job;
  document.title = job?.state === 'running' ? `${Math.round(share(job) * 100)} % · exedit` : 'exedit';
  if (!job) return;
  const bar = $('progress-bar');
  if (job.state === 'running' && job.progress) bar.value = share(job);
  else bar.removeAttribute('value');
  const { progress } = job;
  $('progress-text').textContent = job.state === 'waiting'
    ? job.position ? `Waiting: ${job.position} before this one` : 'Waiting for the first step'
    : progress?.steps === 0 ? 'Preparing the network; the first time this takes longest'
    : progress ? [`Candidate ${progress.candidate + 1} of ${job.candidates.length}`, progress.regions > 1 && `region ${progress.region + 1} of ${progress.regions}`, `step ${progress.step} of ${progress.steps}`].filter(Boolean).join(', ')
      : 'Starting';
}

// Whole edits: a photo that was a result knows the photo before it.

const parent = (picture) => pictureById(picture?.from_result && jobOf(picture.from_result)?.picture);
const child = (picture) => picture && state.pictures.find((one) => one.from_result && parent(one)?.id === picture.id);

function drawVersions() {
  const picture = state.doc?.picture;
  const [before, after] = [parent(picture), child(picture)];
  let edits = 0;
  for (let one = picture; (one = parent(one)); ) edits++;
  $('versions').hidden = !(before || after);
  $('edit-undo').disabled = !before;
  $('edit-redo').disabled = !after;
  $('photo-name').textContent = picture ? `${picture.name} · ${picture.width} × ${picture.height}${edits ? ` · ${edits} ${edits > 1 ? 'edits' : 'edit'}` : ''}` : '';
  $('photo-name').title = [picture?.name, ...(picture?.notes ?? [])].filter(Boolean).join('\n');
}

// Back to the photo before the last edit, with the result of that edit at hand.
async function travel(to, shown) {
  await open(to);
  const job = shown && jobOf(shown);
  if (job) show(job, job.candidates.findIndex((one) => one.result === shown));
}

export function drawAll() {
  drawStrip();
  drawActions();
  drawProgress();
  drawViews();
  drawVersions();
}

export function listen(main) {
  stage = main;
  const soon = debounced(0, drawAll);
  on('jobs pictures', soon);
  on('doc', () => { complain($('result-error')); soon(); });
  on('started', (job) => {
    followed = job;
    state.shown = null;
    if (!job.picture && !state.doc) textDoc(job);
    stage.set({ shown: null, live: null, mode: state.doc ? 'paint' : 'result', cells: [] });
    soon();
    if (matchMedia('(max-width: 760px)').matches) $('stage').scrollIntoView({ block: 'center' }); // it may be far above Run
  });
  on('live', (job) => {
    if (job !== followed || state.shown || job.picture !== (state.doc?.picture.id ?? null)) return;
    stage.set({ live: job.live });
    view('result');
  });
  on('candidate', ({ job, index }) => {
    if (job === followed && !state.shown && job.picture === (state.doc?.picture.id ?? null)) show(job, index, 'result');
    else if (state.shown?.job === job) show(job, state.shown.index, stage.mode);
  });
  on('mask', () => { followed = null; }); // who paints is not taken to a result
  on('ended', (job) => {
    if (job.state === 'failed') complain($('run-error'), job.error);
    if (job === followed && !state.shown) { stage.set({ live: null }); if (state.doc) view('paint'); }
    if (state.shown?.job === job) show(job, state.shown.index, stage.mode);
  });
  on('deleted', (job) => {
    if (state.shown?.job === job) { state.shown = null; stage.set({ shown: null, cells: [], mode: 'paint' }); }
  });
  stage.addEventListener('choose', ({ detail }) => {
    const { job } = state.shown;
    show(job, ordered(job)[detail].index);
  });
  $('cancel').addEventListener('click', () => { const job = runningJob(); if (job) stop(job); });
  $('edit-undo').addEventListener('click', () => { const { picture } = state.doc; travel(parent(picture), picture.from_result); });
  $('edit-redo').addEventListener('click', () => travel(child(state.doc.picture)));
}

// After a reload: the newest result of the photo in work.
export function showNewest() {
  const job = docJobs()[0];
  if (!job) return;
  followed = ended(job) ? null : job;
  const found = finished(job);
  if (found.length) show(job, ordered(job)[0].index);
}
