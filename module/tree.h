/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The persistent radix tree that a region's granules hang in.
 *
 * Nodes and granules carry reference counts.  A fork takes one reference on the
 * root and shares the rest; a change copies the nodes on its path that are
 * shared.  What makes a fork O(dirty) is the epoch: a number that no two trees,
 * and no two forks of one tree, have in common.  A node whose owner is the
 * tree's epoch was made or taken over by this tree since its last fork, so only
 * this tree reaches it and may change it.  A fork shares the root with the child
 * and then seals the parent, that is gives it a new epoch: with that, in O(1),
 * no node is owned by anyone.
 *
 * A granule is open while it may be written without this code being asked: what
 * the next fork has to see to.  Only dirty granules, those that the tree changed
 * since its last fork, are open.
 *
 * This file knows nothing of mm: it also builds in userspace, where it is
 * tested against a model (userspace-tests/tree).
 *
 * Locking.  The caller divides the indices into classes, each a union of
 * aligned blocks of COWSNAP_LEAF_SLOTS indices, and holds the class's lock
 * where "class lock" is said below: a leaf belongs to one class and what it
 * holds is stable under that lock.  Who has seen to it that nobody holds one, and
 * nobody gets one, holds all of them.  tree->lock protects which nodes hang where;
 * tree.c takes it inside the class lock.  Interior nodes are read under RCU.
 * A tree that nobody changes any more (a snapshot's) needs no lock to be read.
 */
#ifndef _COWSNAP_TREE_H
#define _COWSNAP_TREE_H

#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/types.h>

struct cowsnap_account;
struct cowsnap_granule;
struct cowsnap_node;

/*
 * Fan-out is a trade.  A copied node takes a reference on each child: wide
 * leaves make the first write after a fork dear, narrow ones make the tree deep
 * and the walk over what is dirty long.
 */
#define COWSNAP_LEAF_SHIFT	4
#define COWSNAP_LEAF_SLOTS	(1UL << COWSNAP_LEAF_SHIFT)
#define COWSNAP_NODE_SHIFT	6
#define COWSNAP_NODE_SLOTS	(1UL << COWSNAP_NODE_SHIFT)

/* Indices are below 1 << COWSNAP_INDEX_BITS: 2^63 bytes in 4 KiB granules. */
#define COWSNAP_INDEX_BITS	52
#define COWSNAP_INDEX_MAX	((1ULL << COWSNAP_INDEX_BITS) - 1)
#define COWSNAP_TREE_HEIGHT	9

/**
 * struct cowsnap_tree - the granules of one region
 * @root: the root node, NULL when the tree is empty; changed under @lock
 * @epoch: owner of the nodes that only this tree reaches; changes under all
 *	class locks
 * @moves: how often nodes were replaced or removed, for who walks without @lock
 * @lock: protects the shape: root, and the slots of interior nodes
 * @account: what the granules are charged to
 */
struct cowsnap_tree {
	struct cowsnap_node __rcu *root;
	u64 epoch;
	unsigned long moves;
	struct mutex lock;
	struct cowsnap_account *account;
};

/**
 * struct cowsnap_trash - what cowsnap_tree_remove() took out of a tree
 * @node: subtrees, each with the reference that the tree had
 * @nr: how many
 */
struct cowsnap_trash {
	struct cowsnap_node *node[2 * COWSNAP_TREE_HEIGHT];
	unsigned int nr;
};

/**
 * struct cowsnap_tally - granules counted
 * @granules: slots that held a granule
 * @dirty: those among them that the tree changed since its last fork
 * @open: those among them that are open
 */
struct cowsnap_tally {
	u64 granules;
	u64 dirty;
	u64 open;
};

int cowsnap_tree_module_init(void);
void cowsnap_tree_module_exit(void);
u64 cowsnap_tree_nodes(void);

void cowsnap_tree_init(struct cowsnap_tree *tree,
		       struct cowsnap_account *account);
void cowsnap_tree_share(struct cowsnap_tree *child, struct cowsnap_tree *parent);
void cowsnap_tree_seal(struct cowsnap_tree *tree);
void cowsnap_tree_swap(struct cowsnap_tree *a, struct cowsnap_tree *b);
void cowsnap_tree_destroy(struct cowsnap_tree *tree);

struct cowsnap_granule *cowsnap_tree_lookup(struct cowsnap_tree *tree,
					    u64 index);
bool cowsnap_tree_is_open(struct cowsnap_tree *tree, u64 index);
unsigned long
cowsnap_tree_look_around(struct cowsnap_tree *tree, u64 index,
			 struct cowsnap_granule *around[COWSNAP_LEAF_SLOTS]);
bool cowsnap_tree_next(struct cowsnap_tree *tree, u64 *index, bool data);

struct cowsnap_node *cowsnap_tree_owned(struct cowsnap_tree *tree, u64 index);
struct cowsnap_node *cowsnap_tree_find(struct cowsnap_tree *tree, u64 index,
				       struct cowsnap_granule **granule);
struct cowsnap_node *cowsnap_tree_take(struct cowsnap_tree *tree, u64 index);
struct cowsnap_node *cowsnap_tree_own(struct cowsnap_tree *tree, u64 index);
struct cowsnap_granule *cowsnap_leaf_granule(struct cowsnap_node *leaf,
					     u64 index);
bool cowsnap_leaf_is_dirty(struct cowsnap_node *leaf, u64 index);
bool cowsnap_leaf_set_dirty(struct cowsnap_node *leaf, u64 index);
unsigned int cowsnap_tree_dirty_run(struct cowsnap_tree *tree,
				    struct cowsnap_node *leaf, u64 index);
unsigned int cowsnap_leaf_clean_run(struct cowsnap_node *leaf, u64 index);
struct cowsnap_granule *cowsnap_leaf_store(struct cowsnap_node *leaf, u64 index,
					   struct cowsnap_granule *granule);

bool cowsnap_tree_open(struct cowsnap_tree *tree, struct cowsnap_node *leaf,
		       u64 index);
void cowsnap_tree_close(struct cowsnap_tree *tree, u64 index,
			unsigned long slots);
bool cowsnap_tree_next_open(struct cowsnap_tree *tree, u64 *first, u64 *nr);

bool cowsnap_tree_next_diff(struct cowsnap_tree *a, struct cowsnap_tree *b,
			    u64 *first, u64 *nr, bool *data);

bool cowsnap_tree_next_exclusive(struct cowsnap_tree *tree, u64 *index);
unsigned int cowsnap_tree_leaf_exclusive(struct cowsnap_tree *tree, u64 index);

int cowsnap_tree_remove(struct cowsnap_tree *tree, u64 first, u64 last,
			struct cowsnap_trash *trash);
void cowsnap_trash_tally(struct cowsnap_tree *tree,
			 const struct cowsnap_trash *trash,
			 struct cowsnap_tally *tally);
void cowsnap_trash_destroy(struct cowsnap_tree *tree,
			   struct cowsnap_trash *trash);

#endif /* _COWSNAP_TREE_H */
