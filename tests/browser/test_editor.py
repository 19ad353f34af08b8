"""The page in a real browser: what a person does, and the shell's bytes at the end of it."""

import io
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('playwright', reason='launch/test.sh --browser installs it')

from playwright.sync_api import expect  # noqa: E402

from tests.browser.browsing import (  # noqa: E402
  PATIENCE,
  choose,
  download,
  drop,
  few,
  finished,
  get,
  newest_job,
  newest_mask,
  open_photo,
  place,
  png,
  run,
  scene,
  share,
  shell,
  stroke,
  transfer,
  visiting,
)

PHOTO, EXEMPLAR = png(scene(60, 80)), png(scene(20, 20)[:, ::-1])
HOLE = (0.45, 0.5), (0.55, 0.5)


def ready(page, photo=PHOTO, candidates=1):
  """A photo with a painted hole and an exemplar, ready to run."""
  open_photo(page, photo)
  stroke(page, *HOLE)
  choose(page, '#exemplar-choose-0', 'exemplar.png', EXEMPLAR)
  expect(page.locator('.exemplar .name')).to_have_text('exemplar.png')
  few(page, candidates)


def test_from_the_empty_page_to_a_download_with_the_shells_bytes(browser, server, weights):
  with visiting(browser, server, permissions=['clipboard-read', 'clipboard-write']) as page:
    expect(page.locator('#empty')).to_contain_text('Drop a photo here')
    drop(page, 'photo', PHOTO)
    expect(page.locator('#hint')).to_have_text('Paint over what should change')
    stroke(page, *HOLE)
    expect(page.locator('#hint')).to_have_text('Now give a picture of what should appear')
    drop(page, 'exemplar', EXEMPLAR)
    expect(page.locator('#hint')).to_have_text('Ready: press Run')
    few(page, 4)
    page.keyboard.press('Control+Enter')
    expect(page.locator('[data-result]').first).to_be_visible(timeout=PATIENCE)
    finished(page, 4)
    page.click('[data-view=slider]')
    stroke(page, (0.5, 0.5), (0.3, 0.5))
    page.click('[data-view=all]')
    page.mouse.click(*place(page, 0.75, 0.75))  # the fourth of them
    expect(page.locator('.thumb[aria-pressed=true]')).to_have_attribute(
      'title', re.compile('seed 3')
    )
    made, recipe = download(page, '#download'), download(page, '#recipe')
    assert made == shell(page, weights, 3, recipe)
    page.click('#copy')
    expect(page.locator('.toast')).to_have_text('Copied.')
    kinds = page.evaluate('navigator.clipboard.read().then((items) => items[0].types)')
    assert kinds == ['image/png']


def test_a_result_becomes_the_photo_and_whole_edits_are_undone_and_redone(page):
  ready(page)
  run(page)
  page.click('#use-next')
  expect(page.locator('#photo-name')).to_contain_text('1 edit')
  expect(page.locator('.share')).to_have_text('nothing painted yet')
  page.click('#edit-undo')
  expect(page.locator('#photo-name')).not_to_contain_text('1 edit')
  assert share(page) > 0
  page.click('#edit-redo')
  expect(page.locator('#photo-name')).to_contain_text('1 edit')


def test_the_mask_is_what_was_drawn(page):
  """Each tool, beyond the border as well; undo, redo and invert are exact."""
  ready(page)
  page.keyboard.press('Delete')
  page.keyboard.press('r')
  stroke(page, (0.5, 0.5), (1.2, 1.2))  # the lower right quarter
  run(page)
  quarter = newest_mask(page)
  assert quarter.shape == (60, 80) and quarter[31:, 41:].all() and quarter.sum() <= 31 * 41
  page.click('[data-view=paint]')
  page.keyboard.press('i')
  page.keyboard.press('e')
  stroke(page, (0.4, 0.4), (0.41, 0.4))
  page.keyboard.press('Control+z')
  page.keyboard.press('Control+z')
  page.keyboard.press('Control+Shift+z')
  run(page)
  np.testing.assert_array_equal(newest_mask(page), ~quarter)
  page.click('[data-view=paint]')
  saved = download(page, '#mask-download')
  page.keyboard.press('Delete')
  page.keyboard.press('x')  # from removing to adding
  page.keyboard.press('l')
  stroke(page, (0.4, 0.4), (0.6, 0.4), (0.5, 0.6))
  triangle = share(page)
  assert 0 < triangle < 20
  page.keyboard.press('g')  # fills all around it
  page.mouse.click(*place(page, 0.5, 0.2))
  expect(page.locator('.share')).to_have_text('100 % of the photo')
  choose(page, '#mask-upload', 'mask.png', saved)
  expect(page.locator('.share')).not_to_have_text('100 % of the photo')
  run(page)
  np.testing.assert_array_equal(newest_mask(page), ~quarter)


def test_an_object_is_selected_by_a_click(page):
  open_photo(page, png(scene(240, 320)))
  page.keyboard.press('s')
  page.mouse.click(*place(page, 0.5, 0.5))
  assert 8 < share(page) < 30  # the ellipse has 20 %


def test_two_regions_have_their_own_exemplars_one_from_the_photo_and_one_cropped(page):
  ready(page)
  page.click('.look')
  stroke(page, (0.3, 0.3), (0.7, 0.7), stage='dialog .stage')
  page.keyboard.press('b')
  stroke(page, (0.45, 0.45), (0.55, 0.55), stage='dialog .stage')
  page.click('dialog .primary')
  expect(page.locator('.exemplar .faint')).to_have_text('cropped, subject masked')
  page.click('#region-add')
  stroke(page, (0.3, 0.3), (0.35, 0.3))
  page.click('.region.active >> text=From photo')
  stroke(page, (0.4, 0.4), (0.6, 0.6))
  expect(page.locator('.region.active .name')).to_have_text('photo.png')
  run(page)
  first, second = newest_job(page)['request']['regions']
  assert first['exemplar']['box'] and first['exemplar']['mask'] and second['exemplar']['box']
  assert second['exemplar']['picture'] == newest_job(page)['picture']
  assert not (newest_mask(page, 0) & newest_mask(page, 1)).any()
  page.click('[aria-label="Remove region 2"]')
  expect(page.locator('.region')).to_have_count(1)
  page.keyboard.press('Control+z')
  expect(page.locator('.region')).to_have_count(2)


def test_a_pasted_picture_asks_what_it_is(page):
  open_photo(page, PHOTO)
  page.evaluate(
    "(given) => dispatchEvent(new ClipboardEvent('paste', { clipboardData: given }))",
    transfer(page, EXEMPLAR),
  )
  page.click('#ask-dialog >> text=Exemplar')
  expect(page.locator('.exemplar .name')).to_have_text('exemplar.png')


def test_errors_are_the_shells_and_stand_beside_their_cause(page):
  choose(page, '#empty-open', 'notes.png', b'no picture')
  expect(page.locator('#photo-error')).to_contain_text('notes.png')
  open_photo(page, PHOTO)
  page.click('#run')
  expect(page.locator('#region-error-0')).to_have_text('Paint over what should change first.')
  choose(page, '#mask-upload', 'mask.png', png(np.eye(9, dtype=bool)))
  expect(page.locator('#mask-error')).to_contain_text('9 x 9')
  stroke(page, *HOLE)
  page.click('#run')
  expect(page.locator('#region-error-0')).to_contain_text('Give an exemplar first')
  choose(page, '#exemplar-choose-0', 'exemplar.svg', b'<svg xmlns="http://www.w3.org/2000/svg"/>')
  expect(page.locator('#region-error-0')).to_contain_text('exemplar.svg')
  choose(page, '#exemplar-choose-0', 'exemplar.png', EXEMPLAR)
  page.fill('#setting-steps', '0')
  page.click('#run')
  expect(page.locator('.field .error:visible')).to_contain_text('steps')
  assert not page.locator('.group-card').count()


def encoded(kind) -> bytes:
  out = io.BytesIO()
  picture = Image.fromarray(scene(48, 64))
  if kind == 'rotated':
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    picture.save(out, 'JPEG', exif=exif, quality=95)
  elif kind == 'cmyk':
    picture.convert('CMYK').save(out, 'JPEG', quality=95)
  else:
    deep = np.asarray(picture.convert('L')).astype(np.uint16) * 257
    Image.fromarray(deep).save(out, 'PNG')
  return out.getvalue()


@pytest.mark.parametrize('kind', ['rotated', 'cmyk', 'deep'])
def test_unusual_files_are_shown_upright_and_edited_as_in_the_shell(page, weights, kind):
  ready(page, encoded(kind))
  run(page)
  assert newest_mask(page).shape == ((64, 48) if kind == 'rotated' else (48, 64))
  made, recipe = download(page, '#download'), download(page, '#recipe')
  assert made == shell(page, weights, 0, recipe)


def test_fingers_paint_and_two_of_them_zoom(browser, server):
  how = dict(viewport=dict(width=390, height=800), has_touch=True, is_mobile=True)
  with visiting(browser, server, **how) as page:
    open_photo(page, PHOTO)
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *points):
      points = [dict(x=x, y=y, id=i) for i, (x, y) in enumerate(points)]
      touch.send('Input.dispatchTouchEvent', dict(type=kind, touchPoints=points))

    a, b, c = (place(page, x, 0.5) for x in (0.4, 0.5, 0.6))
    fingers('touchStart', a)
    fingers('touchMove', b)
    fingers('touchEnd')
    painted, zoom = share(page), page.text_content('#zoom-value')
    fingers('touchStart', b)
    fingers('touchStart', b, c)
    fingers('touchMove', a, (c[0] + 60, c[1]))
    fingers('touchEnd')
    page.wait_for_timeout(200)
    assert int(page.text_content('#zoom-value').split()[0]) > int(zoom.split()[0])
    assert share(page) == painted > 0


def test_by_keyboard_alone(page):
  """The example from Tab and Enter to a result; then the mask by the arrows."""
  for _ in range(40):
    if page.evaluate('document.activeElement.id') == 'example':
      break
    page.keyboard.press('Tab')
  page.keyboard.press('Enter')
  expect(page.locator('#run')).to_be_focused()
  page.keyboard.press('Enter')
  finished(page, 4)
  for _ in range(60):
    if page.evaluate('document.activeElement.id') == 'use-next':
      break
    page.keyboard.press('Shift+Tab')
  page.keyboard.press('Enter')
  expect(page.locator('#photo-name')).to_contain_text('1 edit')
  page.locator('#stage').focus()
  for key in ('ArrowRight', 'Enter', 'Shift+ArrowRight', 'ArrowDown', 'Enter'):
    page.keyboard.press(key)
  assert share(page) > 0
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.id') != 'stage'


def test_a_reload_in_mid_run_loses_nothing(page):
  ready(page, candidates=4)
  painted = share(page)
  page.wait_for_timeout(1000)  # what was painted is kept a moment later
  page.click('#run')
  expect(page.locator('.group-card')).to_have_count(1)
  page.reload()
  finished(page, 4)
  assert share(page) == painted
  expect(page.locator('.exemplar .name')).to_have_text('exemplar.png')


def test_a_killed_server_that_starts_again_ends_the_run(page, server):
  ready(page, candidates=8)
  page.fill('#setting-steps', '60')
  page.click('#run')
  first = page.locator('[data-result]').first
  expect(first).to_be_visible(timeout=PATIENCE)
  name = first.get_attribute('data-result')
  made = get(page, f'api/results/{name}')
  server.kill()
  expect(page.locator('#banner')).to_contain_text('does not answer')
  server.start()
  finished(page, 8)
  expect(page.locator('#banner')).to_be_hidden()
  assert get(page, f'api/results/{name}') == made


def test_sessions_do_not_see_each_other(page, browser, server):
  ready(page)
  run(page)
  result = page.locator('[data-result]').first.get_attribute('data-result')
  assert page.request.get(f'{page.url}api/results/{result}').ok
  with visiting(browser, server) as other:
    expect(other.locator('#empty')).to_be_visible()
    assert not other.locator('.group-card').count()
    assert other.request.get(f'{other.url}api/results/{result}').status == 404


@pytest.mark.parametrize('width', [360, 1024])
def test_narrow_screens_do_not_scroll_sideways_and_every_control_has_a_name(browser, server, width):
  with visiting(browser, server, viewport=dict(width=width, height=740)) as page:
    ready(page)
    run(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    unnamed = page.evaluate("""() => {
      const named = (one) => one.ariaLabel || one.labels?.length || one.textContent.trim();
      const controls = [...document.querySelectorAll('button, input, select, textarea')];
      const unnamed = controls.filter((one) => one.checkVisibility() && !named(one));
      return unnamed.map((one) => one.outerHTML);
    }""")
    assert not unnamed


def test_a_photo_of_24_megapixels_does_not_freeze_the_page(page):
  ready(page, png(scene(4000, 6000)))
  page.evaluate("""() => {
    globalThis.longest = 0;
    let last = performance.now();
    const tick = (now) => {
      longest = Math.max(longest, now - last);
      last = now;
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }""")
  stroke(page, (0.4, 0.5), (0.6, 0.5), (0.6, 0.55))
  for _ in range(5):
    page.mouse.wheel(0, -200)
  page.keyboard.press('0')
  page.wait_for_timeout(1000)  # the frame is asked for meanwhile
  assert page.evaluate('longest') < 1000  # milliseconds, on a busy machine
  page.click('#run')
  expect(page.locator('.group-card')).to_have_count(1, timeout=PATIENCE)
  assert newest_mask(page).shape == (4000, 6000)
  page.click('#cancel')
  expect(page.locator('.group-card.cancelled, .group-card.done')).to_have_count(1, timeout=PATIENCE)
