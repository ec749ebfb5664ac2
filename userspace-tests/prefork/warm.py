# SPDX-License-Identifier: GPL-2.0-only
"""warm.py ITEMS WORKERS: a shop's catalogue is made once, and served by workers that are forked with it.

Python counts references in the objects themselves, so workers write to what they only read, and pages get copied.
Prints one line of JSON, and has the workers live until its input ends. Times are nanoseconds, sizes bytes.
"""
import gc
import json
import multiprocessing
import os
import random
import sys
import time

REQUESTS = 20


class Item:
    __slots__ = ("name", "price", "stock", "text", "picture")

    def __init__(self, number):
        self.name = f"item {number}"
        self.price = 300 + number * 7919 % 100003
        self.stock = 1000 + number % 5000
        self.text = f"no. {number}; " * 30
        # Too large for Python's own allocator, so malloc() has it.
        self.picture = bytes(1500) if number % 20 == 0 else None


def make(count):
    items = (Item(number) for number in range(count))
    return {item.name: item for item in items}


def checksum(catalogue):
    total = 0
    for item in catalogue.values():
        total = (total * 31 + item.price * item.stock + len(item.text)) % 1000003
    return total


def answer(catalogue, seed):
    """What a stretch of items costs, and ten that are sold out of it and elsewhere."""
    dice = random.Random(seed)
    first = dice.randrange(len(catalogue) - 500)
    total = sum(catalogue[f"item {number}"].price for number in range(first, first + 500))
    for number in [first] + dice.choices(range(len(catalogue)), k=9):
        item = catalogue[f"item {number}"]
        item.stock -= 1
        total += item.price * item.stock
        if item.stock % 3 == 0:
            item.text = item.text.upper()
    return total


def work(catalogue, requests):
    requests.send("ready")
    while (seed := requests.recv()) is not None:
        requests.send(answer(catalogue, seed) if seed else checksum(catalogue))


def ask_all(pipes, what):
    answers = []
    for number in range(REQUESTS):
        for worker, pipe in enumerate(pipes):
            pipe.send(f"{what} {worker} {number}")
        answers += [pipe.recv() for pipe in pipes]
    return answers


def memory(pid, key):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(count, workers):
    multiprocessing.set_start_method("fork")
    pauses = []
    began = []
    # The first to be registered is the last to run before the fork, and the first to run after it.
    os.register_at_fork(
        before=lambda: began.append(time.perf_counter_ns()),
        after_in_parent=lambda: pauses.append(time.perf_counter_ns() - began[-1]))

    start = time.perf_counter_ns()
    # All of the heap is kept, so there is no garbage to look for, neither now nor in workers.
    gc.disable()
    catalogue = make(count)
    gc.freeze()
    made = time.perf_counter_ns() - start
    before = checksum(catalogue)
    heap = memory("self", "Rss:")

    pipes = []
    processes = []
    for _ in range(workers):
        ours, theirs = multiprocessing.Pipe()
        processes.append(multiprocessing.Process(target=work, args=(catalogue, theirs), daemon=True))
        processes[-1].start()
        pipes.append(ours)
        # Beside one that starts, a fork would take longer than it does.
        ours.recv()

    start = time.perf_counter_ns()
    answers = ask_all(pipes, "while it is new")
    served = time.perf_counter_ns() - start
    pss = sum(memory(pid, "Pss:") for pid in ["self"] + [process.pid for process in processes])

    start = time.perf_counter_ns()
    unchanged = checksum(catalogue) == before
    read = time.perf_counter_ns() - start
    # Prices that no worker may see.
    for number in range(0, count, 100):
        catalogue[f"item {number}"].price += 1
    answers += ask_all(pipes, "after the parent's change")

    print(json.dumps({
        "made": made, "heap": heap, "pauses": pauses, "served": served, "pss": pss, "read": read,
        "unchanged": unchanged, "answers": answers, "workers": [process.pid for process in processes]}), flush=True)
    sys.stdin.read()
    heaps = []
    # All that they have, of two: to read is to write here, so that has them copy it.
    for pipe in pipes[0], pipes[-1]:
        pipe.send("")
        heaps.append(pipe.recv())
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()
    print(json.dumps({"heaps": heaps + [checksum(catalogue)], "statuses": [process.exitcode for process in processes]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
