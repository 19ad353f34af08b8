// Runs edits and follows them: from the state of the page to a job, and from its events to results.

import * as api from './api.js';
import { $, complain, say } from './dom.js';
import { missing } from './exemplars.js';
import * as settings from './settings.js';
import { emit, input, inputs, state } from './state.js';

const following = new Map(); // job id to the function that stops following
const AT_ONCE = 2; // jobs that are followed
export const ended = (job) => ['done', 'failed', 'cancelled'].includes(job.state);
export const runningJob = () => state.jobs.findLast((job) => job.state === 'running') ?? state.jobs.findLast((job) => !ended(job));
export const finished = (job) => job.candidates.map((one, index) => ({ ...one, index })).filter((one) => one.result);

function clearErrors() {
  complain($('run-error'));
  for (const place of document.querySelectorAll('#regions .error, #settings .error')) complain(place);
}

// Says in place what is missing, and takes the person there. Returns whether something is.
function lacks() {
  const { doc } = state;
  const at = (place, text, focus) => { complain(place, text); say(text); focus?.focus(); place.scrollIntoView?.({ block: 'nearest' }); return true; };
  const needs = (kind) => inputs(kind).some((one) => one.required && !one.of);
  if (!doc && needs('photo')) return at($('run-error'), 'Open a photo first.', $('open'));
  if (doc && needs('mask')) {
    const empty = doc.regions.findIndex((region) => !doc.mask.count(region.bit));
    if (empty >= 0) return at($(`region-error-${empty}`), 'Paint over what should change first.', $('stage'));
  }
  const bare = doc ? missing() : -1;
  if (bare >= 0) {
    if (!$(`exemplar-choose-${bare}`)) { doc.active = bare; emit('regions'); }
    return at($(`region-error-${bare}`), 'Give an exemplar first: a picture of what should appear.', $(`exemplar-choose-${bare}`));
  }
  const text = inputs('text').find((one) => one.required && !state.texts[one.name]?.trim());
  if (text) return at($('run-error'), `Write the ${text.name.replace('_', ' ')} first.`, $(`text-${text.name}`));
  return false;
}

// The request and its masks.
async function assemble() {
  const { doc, weights, texts } = state;
  const masks = {};
  const regions = [];
  for (const [index, region] of (doc?.regions ?? []).entries()) {
    const one = { mask: null, exemplar: null };
    if (inputs('mask').length && doc.mask.count(region.bit)) {
      one.mask = `mask${index}`;
      masks[one.mask] = await doc.mask.blob(region.bit);
    }
    if (input('exemplar') && region.exemplar) {
      const { picture, box, cut } = region.exemplar;
      one.exemplar = { picture: picture.id, box, mask: null };
      if (cut && input('exemplar_mask')) { one.exemplar.mask = `cut${index}`; masks[`cut${index}`] = cut; }
    }
    if (region.prompt && doc.regions.length > 1 && input('prompt')) one.prompt = region.prompt;
    regions.push(one);
  }
  const job = { weights: weights.name, picture: doc?.picture.id ?? null, regions, ...settings.request() };
  for (const { name } of inputs('text')) {
    if (texts[name]?.trim() && (name !== 'target' || doc)) job[name] = texts[name].trim();
  }
  return [job, masks];
}

export async function run() {
  clearErrors();
  if ($('run').disabled || !state.weights || lacks()) return;
  $('run').disabled = true;
  try {
    const { id } = await api.start(...(await assemble()));
    const job = await api.job(id);
    state.jobs = [job, ...state.jobs.filter((one) => one.id !== id)];
    settings.nextSeed();
    emit('started', job);
    emit('jobs');
    watch();
    say('The edit has started.');
  } catch (error) {
    const wait = error.wait ? ` Try again in ${error.wait} seconds.` : '';
    if (!settings.complainAbout(error.message)) complain($('run-error'), error.message + wait);
    say(error.message);
  } finally {
    $('run').disabled = false;
  }
}

// Follows the events of the jobs that are next; a browser opens few connections to one server.
function watch() {
  const open = state.jobs.filter((job) => !ended(job)).slice(-AT_ONCE);
  for (const job of open) if (!following.has(job.id)) following.set(job.id, api.follow(job.id, (name, data) => handle(job, name, data)));
}

// Events may come twice, after a lost connection.
async function handle(job, name, data) {
  if (name === 'lost') return lost(job, true);
  if (name === 'found') return lost(job, false);
  apply(job, name, data);
  emit('jobs');
  if (!ended(job)) return;
  following.delete(job.id);
  watch();
  const told = await api.jobs().catch(() => []); // the notes of this job, and the places of those that wait
  for (const one of told) {
    const known = state.jobs.find(({ id }) => id === one.id);
    if (known === job) job.notes = one.notes;
    else if (known && !following.has(one.id)) Object.assign(known, one);
  }
  emit('jobs');
}

let gone = false;
async function lost(job, now) {
  if (gone === now) return;
  gone = now;
  complain($('banner'), now ? 'The server does not answer. The page tries again; what is finished stays on the server.' : '');
  if (now) return;
  try { // what happened meanwhile
    Object.assign(job, await api.job(job.id));
    emit('jobs');
  } catch (error) {
    Object.assign(job, { state: 'failed', error: error.message });
    following.get(job.id)?.();
    following.delete(job.id);
    emit('jobs');
  }
}

function apply(job, name, data) {
  if (name === 'waiting') Object.assign(job, { state: 'waiting', position: data.position });
  else if (name === 'running') {
    Object.assign(job, { state: 'running', position: null, progress: data });
    if (data?.preview && data.preview !== job.looked) {
      job.looked = data.preview;
      look(job, data.preview);
    }
  } else if (name === 'candidate') {
    const one = job.candidates[data.candidate];
    const fresh = !one.result;
    Object.assign(one, data);
    job.live = null;
    if (fresh) {
      emit('candidate', { job, index: data.candidate });
      say(`Candidate ${data.candidate + 1} of ${job.candidates.length} is ready.`);
    }
  } else {
    Object.assign(job, { state: name, progress: null, live: null, error: data.error ?? null });
    data.candidates?.forEach((one, index) => Object.assign(job.candidates[index], one));
    const said = { done: 'The edit is finished.', failed: data.error, cancelled: 'The edit was cancelled.' }[name];
    say(said);
    emit('ended', job);
  }
}

async function look(job, path) {
  try {
    const { blob, frame } = await api.jobPreview(path);
    if (ended(job)) return;
    job.live = { image: await createImageBitmap(blob), frame };
    emit('live', job);
  } catch { /* the next one may come */ }
}

// Cancels a job that is not over; else deletes its results.
export async function stop(job) {
  try {
    await api.stop(job.id);
    if (ended(job)) {
      state.jobs = state.jobs.filter((one) => one !== job);
      emit('deleted', job);
    }
    emit('jobs');
  } catch (error) {
    complain($('run-error'), error.message);
  }
}

// Jobs of the session that an earlier visit of the page has started.
export async function resume() {
  state.jobs = await api.jobs();
  watch();
  emit('jobs');
}
