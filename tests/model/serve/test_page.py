"""The page in a real browser. Needs Chromium and its driver: Debian's packages chromium and chromium-driver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from model.recommend.recommender import Recommender
from model.serve.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="Chromium or its driver is not installed (Debian: apt-get install chromium-driver)",
)


class Page:
    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [found.text for found in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def until(self, condition: Callable[[], bool]) -> None:
        WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def ask(self, user: str) -> None:
        self.find("#user").clear()
        self.find("#user").send_keys(user, Keys.ENTER)
        self.until(lambda: f"User {user}" in self.find("#status").text)

    @property
    def errors(self) -> list[str]:
        """Console messages, including violations of the content security policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--window-size=1000,900"):
        options.add_argument(flag)
    if os.geteuid() == 0:  # Chromium's sandbox refuses to run as root, as in containers
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Page(driver)
    driver.quit()


def test_recommendations_are_shown_next_to_the_history(
    page: Page, start: Callable[..., Any], answers: Service, recommender: Recommender
) -> None:
    page.driver.get(start(answers).address)
    page.until(lambda: page.texts("#examples button") == ["1007", "3", "55"])
    assert page.find("#about").text == "A NeuMF network trained on 4 users and 12 items"
    page.find("#k").clear()
    page.find("#k").send_keys("3")
    page.ask("55")

    ranking = recommender.recommend(["55"], 3)[0]
    assert page.texts("#recommended .score") == [f"{score:.3f}" for score in ranking.scores]
    shown = [f"<b>Title</b> & {item}" if item != "item-11" else item for item in ranking.items]
    assert page.texts("#recommended .name") == shown  # titles are shown as text, never as HTML
    latest = list(reversed(recommender.history("55")))
    assert page.texts("#history .name") == [f"<b>Title</b> & {item}" for item in latest]

    page.find("#examples button").click()
    page.until(lambda: page.find("#status").text == "User 1007")
    page.driver.back()
    page.until(lambda: page.find("#status").text == "User 55")
    assert page.errors == []


def test_an_unknown_user_is_reported_and_the_next_one_answered(
    page: Page, start: Callable[..., Any], answers: Service
) -> None:
    page.driver.get(start(answers).address)
    page.ask("<img src=x>")
    assert page.find("#status").text == "User <img src=x> is not known."
    assert not page.find("#results").is_displayed()
    assert len(page.errors) == 1  # the 404 itself
    page.ask("3")
    assert page.find("#results").is_displayed()


def test_popular_items_are_labelled_popular(page: Page, start: Callable[..., Any], answers: Service) -> None:
    page.driver.get(f"{start(answers, refuses_unknown=False).address}/#user=new")
    page.until(lambda: "popular, not personal" in page.find("#status").text)
    assert "most popular" in page.find("#meaning").text
    assert page.texts("#history li") == ["Nothing is known of this user."]
    assert page.errors == []


def test_the_page_is_accessible(page: Page, start: Callable[..., Any], answers: Service) -> None:
    page.driver.get(f"{start(answers).address}/#user=3")
    page.until(lambda: page.find("#status").text == "User 3")
    assert [page.find(name).accessible_name for name in ("#user", "#k")] == ["User id", "How many"]
    assert [page.find(name).aria_role for name in ("#status", "#recommended", "#history")] == ["status", "list", "list"]
    assert page.texts("h1, h2") == ["Recommendations", "Recommended", "History"]
    body = page.find("body")
    page.find("#user").click()
    body.send_keys(Keys.TAB)  # keyboard only: tab from the user id to the number field
    assert page.driver.switch_to.active_element.get_attribute("id") == "k"


def test_the_openapi_page_works_offline(page: Page, start: Callable[..., Any], answers: Service) -> None:
    page.driver.get(f"{start(answers).address}/docs")
    page.until(lambda: page.texts(".opblock-summary-path") == ["/recommend", "/health", "/metrics"])
    assert page.errors == []
